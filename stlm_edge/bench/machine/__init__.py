"""Facts and sensors of the machine that is measured."""
