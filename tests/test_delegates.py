"""Ops of one level are one delegate: as few as can be, and none that would have to wait for itself."""

from torch import fx

from edgeact.targets._delegates import levels


def chain(graph: fx.Graph, start: fx.Node, names: str) -> dict[str, fx.Node]:
    """Ops of these names one after another."""
    nodes = {}
    for name in names:
        start = nodes[name] = graph.call_function(abs, (start,), name=name)
    return nodes


def names(found: list[set[fx.Node]] | None) -> list[str]:
    assert found is not None
    return ["".join(sorted(node.name for node in delegate)) for delegate in found]


def test_what_lies_before_and_after_everything_outside_is_one_delegate() -> None:
    graph = fx.Graph()
    clip = graph.placeholder("clip")
    n = chain(graph, clip, "xabc") | chain(graph, clip, "def")
    assert names(levels(graph, [[n[name]] for name in "abcdef"])) == ["abcdef"]


def test_a_path_that_leaves_and_comes_back_begins_another() -> None:
    graph = fx.Graph()
    n = chain(graph, graph.placeholder("clip"), "abxcydz")
    n |= chain(graph, n["b"], "ef")
    assert names(levels(graph, [[n[name]] for name in "abcdef"])) == ["abef", "c", "d"]


def test_a_group_waits_for_all_its_inputs() -> None:
    graph = fx.Graph()
    clip = graph.placeholder("clip")
    n = chain(graph, clip, "ax") | chain(graph, clip, "b")
    n["c"] = graph.call_function(max, (n["x"], n["b"]), name="c")
    n |= chain(graph, n["b"], "d")
    assert names(levels(graph, [[n["a"]], [n["b"], n["d"]], [n["c"]]])) == ["abd", "c"]
    assert names(levels(graph, [[n["a"]], [n["b"]], [n["c"], n["d"]]])) == ["ab", "cd"]


def test_a_group_that_waits_for_itself_is_none() -> None:
    graph = fx.Graph()
    n = chain(graph, graph.placeholder("clip"), "axb")
    assert levels(graph, [[n["a"], n["b"]]]) is None
