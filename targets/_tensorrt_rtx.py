"""TensorRT for RTX as a check: a real parser and builder of NVIDIA's that needs no GPU.

It is not the TensorRT of a Jetson: it shares the ONNX parser, and takes strongly typed networks alone.
"""

from pathlib import Path

__all__ = ["parser_name", "refused"]


def parser_name() -> str | None:
    """`TensorRT for RTX 1.7.1`, or None where it is not installed."""
    try:
        import tensorrt_rtx_bindings as trt
    except ImportError:
        return None
    return f"TensorRT for RTX {'.'.join(trt.__version__.split('.')[:3])}"


def refused(file: Path) -> tuple[str, str] | None:
    """The node at which the real parser stops in an ONNX file, and its words; None where it does not, or is absent."""
    if parser_name() is None:
        return None
    import tensorrt_rtx_bindings as trt

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)  # what it says is in the parser's errors
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(file)):
        return None
    error = parser.get_error(0)
    return error.node_name(), error.desc()
