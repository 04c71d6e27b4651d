package com.google.ai.edge.litert;

public final class TensorBuffer extends JniHandle {
    private TensorBuffer() {}

    public void writeFloat(float[] data) throws LiteRtException {}

    public float[] readFloat() throws LiteRtException {
        return new float[0];
    }
}
