package com.google.ai.edge.litert;

import com.sun.jna.Pointer;

public abstract class JniHandle implements AutoCloseable {
    final Pointer handle;
    private final String destroy;
    private boolean destroyed;

    JniHandle(Pointer handle, String destroy) {
        this.handle = handle;
        this.destroy = destroy;
    }

    final void assertNotDestroyed() {
        if (destroyed) {
            throw new IllegalStateException("The handle has been destroyed.");
        }
    }

    @Override
    public final void close() {
        if (!destroyed) {
            destroyed = true;
            Native.destroy(destroy, handle);
        }
    }
}
