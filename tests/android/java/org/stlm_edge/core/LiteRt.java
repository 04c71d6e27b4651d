package org.stlm_edge.core;

import com.sun.jna.Memory;
import com.sun.jna.NativeLibrary;
import com.sun.jna.NativeLong;
import com.sun.jna.Pointer;
import com.sun.jna.ptr.PointerByReference;
import java.io.File;

/**
 * A .tflite file in the LiteRT library inside the ai-edge-litert wheel, by its C API (litert/c/*.h of release 2.3):
 * what the app's LiteRtModel is on a phone.
 */
final class LiteRt implements Model {
    static final int CPU = 1;
    static final int GPU = 2;
    private static final int READ = 0;
    private static final int WRITE = 1;
    private static final NativeLong ZERO = new NativeLong(0);
    private static final NativeLong ONE = new NativeLong(1);
    private static final NativeLibrary LIBRARY = NativeLibrary.getInstance(System.getProperty("litert"));

    private final Pointer compiled;
    private final Pointer input;
    private final Pointer output;

    LiteRt(File artifact, int accelerator) throws Exception {
        Pointer environment = made("LiteRtCreateEnvironment", 0, null);
        Pointer model = made("LiteRtCreateModelFromFile", environment, artifact.getPath());
        Pointer options = made("LiteRtCreateOptions");
        call("LiteRtSetOptionsHardwareAccelerators", options, accelerator);
        compiled = made("LiteRtCreateCompiledModel", environment, model, options);
        Pointer signature = made("LiteRtGetModelSignature", model, ZERO);
        input = buffer(environment, signature, "Input");
        output = buffer(environment, signature, "Output");
    }

    private Pointer buffer(Pointer environment, Pointer signature, String end) throws Exception {
        Pointer needs = made("LiteRtGetCompiledModel" + end + "BufferRequirements", compiled, ZERO, ZERO);
        Pointer tensor = made("LiteRtGetSignature" + end + "TensorByIndex", signature, ZERO);
        Memory type = new Memory(128); // LiteRtRankedTensorType has 72 bytes
        call("LiteRtGetRankedTensorType", tensor, type);
        return made("LiteRtCreateManagedTensorBufferFromRequirements", environment, type, needs);
    }

    @Override
    public float[] run(byte[] rgb) throws Exception {
        float[] image = new float[rgb.length];
        for (int i = 0; i < image.length; i++) {
            image[i] = rgb[i] & 255;
        }
        locked(input, WRITE).write(0, image, 0, image.length);
        call("LiteRtUnlockTensorBuffer", input);
        call("LiteRtRunCompiledModel", compiled, ZERO, ONE, array(input), ONE, array(output));
        float[] map = locked(output, READ).getFloatArray(0, image.length / 3);
        call("LiteRtUnlockTensorBuffer", output);
        return map;
    }

    private static Pointer locked(Pointer buffer, int mode) throws Exception {
        PointerByReference place = new PointerByReference();
        call("LiteRtLockTensorBuffer", buffer, place, mode);
        return place.getValue();
    }

    private static Memory array(Pointer item) {
        Memory items = new Memory(8);
        items.setPointer(0, item);
        return items;
    }

    /** Calls a function whose last argument is where it puts what it made. */
    private static Pointer made(String function, Object... arguments) throws Exception {
        PointerByReference place = new PointerByReference();
        Object[] all = java.util.Arrays.copyOf(arguments, arguments.length + 1);
        all[arguments.length] = place;
        call(function, all);
        return place.getValue();
    }

    private static void call(String function, Object... arguments) throws Exception {
        int status = LIBRARY.getFunction(function).invokeInt(arguments);
        if (status != 0) {
            throw new Exception(function + " gave status " + status);
        }
    }
}
