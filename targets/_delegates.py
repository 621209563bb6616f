"""Which ops of a program go into one delegate, in time linear in the program.

ExecuTorch's own partitioner tries to merge every two groups of nodes, and searches the graph for a cycle each time: of
thousands of nodes that takes minutes, and it may stop at several delegates, or at none ("dependency cycles"), where one
would do. Here a node's level is the number of times that a path to it leaves the delegates:

    clip ─ cast ─ conv ─ relu ─ slice (stride 2) ─ conv ─ …
           out     0      0        out: 1           1          what has one level is one delegate

A path out of a delegate and back raises the level, so none leads from a delegate back into itself.
"""

from collections.abc import Iterable

from torch import fx

__all__ = ["levels"]


def levels(graph: fx.Graph, groups: Iterable[Iterable[fx.Node]]) -> list[set[fx.Node]] | None:
    """The nodes of each delegate, in the order in which they run.

    Args:
        graph: A program.
        groups: Nodes that a backend takes, each group as a whole (an int8 op with its dequantize and quantize ops).

    Returns:
        None where a path leaves a group and comes back to it, so that the group cannot be run as a whole.
    """
    together: dict[fx.Node, int] = {node: i for i, group in enumerate(groups) for node in group}
    of_group, outside = dict.fromkeys(together.values(), 0), dict.fromkeys(graph.nodes, 0)
    for _ in range(len(of_group) + 1):  # a group's level rises until all its inputs are there
        before = dict(of_group)
        for node in graph.nodes:
            level = (
                max(
                    (of_group[together[x]] + (node not in together) if x in together else outside[x])
                    for x in node.all_input_nodes
                )
                if node.all_input_nodes
                else 0
            )
            if node in together:
                of_group[together[node]] = max(of_group[together[node]], level)
            else:
                outside[node] = level
        if of_group == before:
            delegates: dict[int, set[fx.Node]] = {}
            for node, group in together.items():
                delegates.setdefault(of_group[group], set()).add(node)
            return [delegates[level] for level in sorted(delegates)]
    return None
