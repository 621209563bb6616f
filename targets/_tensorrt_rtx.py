"""TensorRT for RTX as a check: a real parser and builder of NVIDIA's that needs no GPU.

It is not the TensorRT of a Jetson: it shares the ONNX parser, and takes strongly typed networks alone.
"""

from pathlib import Path

from edgeact.errors import ToolchainError

__all__ = ["parse", "parser_name"]


def parser_name() -> str | None:
    """`TensorRT for RTX 1.7.1`, or None where it is not installed."""
    try:
        import tensorrt_rtx_bindings as trt
    except ImportError:
        return None
    return f"TensorRT for RTX {'.'.join(trt.__version__.split('.')[:3])}"


def parse(file: Path) -> None:
    """Let the real parser read an ONNX file; nothing happens where it is not installed.

    Raises:
        ToolchainError: It refuses the file; its own words, and the node.
    """
    if parser_name() is None:
        return
    import tensorrt_rtx_bindings as trt

    logger = trt.Logger(trt.Logger.ERROR)
    logger.min_severity = trt.Logger.INTERNAL_ERROR  # what it says is in the parser's errors
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(file)):
        error = parser.get_error(0)
        raise ToolchainError(f"{parser_name()} cannot parse node {error.node_name() or error.node()!r}: {error.desc()}")
