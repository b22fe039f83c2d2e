"""The build stage: an exported ONNX file becomes a TensorRT plan with a sidecar; see docs/tensorrt.md."""
