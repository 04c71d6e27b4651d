package com.google.ai.edge.litert;

import com.sun.jna.Memory;
import com.sun.jna.NativeLong;
import com.sun.jna.Pointer;
import com.sun.jna.ptr.NativeLongByReference;
import com.sun.jna.ptr.PointerByReference;

public final class TensorBuffer extends JniHandle {
    private static final int READ = 0;
    private static final int WRITE = 1;

    /** {@code end} is Input or Output. */
    TensorBuffer(Environment environment, Pointer model, Pointer compiled, String end) throws LiteRtException {
        super(made(environment, model, compiled, end), "LiteRtDestroyTensorBuffer");
    }

    private static Pointer made(Environment environment, Pointer model, Pointer compiled, String end)
            throws LiteRtException {
        NativeLong first = Native.FIRST;
        Pointer needs = Native.made("LiteRtGetCompiledModel" + end + "BufferRequirements", compiled, first, first);
        Pointer signature = Native.made("LiteRtGetModelSignature", model, first);
        Pointer tensor = Native.made("LiteRtGetSignature" + end + "TensorByIndex", signature, first);
        Memory type = new Memory(128); // LiteRtRankedTensorType has 72 bytes
        Native.call("LiteRtGetRankedTensorType", tensor, type);
        return Native.made("LiteRtCreateManagedTensorBufferFromRequirements", environment.handle, type, needs);
    }

    public void writeFloat(float[] data) throws LiteRtException {
        if (4L * data.length != bytes()) {
            throw new LiteRtException(1, data.length + " values for " + bytes() + " bytes");
        }
        locked(WRITE).write(0, data, 0, data.length);
        Native.call("LiteRtUnlockTensorBuffer", handle);
    }

    public float[] readFloat() throws LiteRtException {
        float[] data = locked(READ).getFloatArray(0, (int) bytes() / 4);
        Native.call("LiteRtUnlockTensorBuffer", handle);
        return data;
    }

    private long bytes() throws LiteRtException {
        assertNotDestroyed();
        NativeLongByReference size = new NativeLongByReference();
        Native.call("LiteRtGetTensorBufferPackedSize", handle, size);
        return size.getValue().longValue();
    }

    private Pointer locked(int mode) throws LiteRtException {
        PointerByReference place = new PointerByReference();
        Native.call("LiteRtLockTensorBuffer", handle, place, mode);
        return place.getValue();
    }
}
