package com.google.ai.edge.litert;

import com.sun.jna.NativeLibrary;
import com.sun.jna.NativeLong;
import com.sun.jna.Pointer;
import com.sun.jna.ptr.PointerByReference;
import java.util.Arrays;

/** LiteRT's C API (litert/c/*.h of release 2.3) in the library that the property {@code litert} names. */
final class Native {
    static final NativeLong FIRST = new NativeLong(0);
    static final NativeLong ONE = new NativeLong(1);
    private static final NativeLibrary LIBRARY = NativeLibrary.getInstance(System.getProperty("litert"));

    private Native() {}

    static void call(String function, Object... arguments) throws LiteRtException {
        int status = LIBRARY.getFunction(function).invokeInt(arguments);
        if (status != 0) {
            throw new LiteRtException(status, function + " gave status " + status);
        }
    }

    /** Calls a function whose last argument receives the object that it makes. */
    static Pointer made(String function, Object... arguments) throws LiteRtException {
        PointerByReference place = new PointerByReference();
        Object[] all = Arrays.copyOf(arguments, arguments.length + 1);
        all[arguments.length] = place;
        call(function, all);
        return place.getValue();
    }

    static void destroy(String function, Pointer handle) {
        LIBRARY.getFunction(function).invokeVoid(new Object[] {handle});
    }
}
