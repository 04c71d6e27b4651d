package org.stlm_edge.core;

import java.io.IOException;

/** A bundle that is not as it must be. The message is one line for people: what was found, expected, to do. */
public final class BundleException extends IOException {
    public BundleException(String message) {
        super(message);
    }
}
