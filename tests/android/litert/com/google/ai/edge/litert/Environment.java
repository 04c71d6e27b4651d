package com.google.ai.edge.litert;

import android.content.Context;

public final class Environment extends JniHandle {
    private Environment() throws LiteRtException {
        super(Native.made("LiteRtCreateEnvironment", 0, null), "LiteRtDestroyEnvironment");
    }

    public static Environment create(Context context) throws LiteRtException {
        return new Environment();
    }
}
