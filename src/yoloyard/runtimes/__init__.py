"""What computes a network: torch, ONNX Runtime, OpenVINO, or torch's exported programs."""
