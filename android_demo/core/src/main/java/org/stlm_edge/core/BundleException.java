package org.stlm_edge.core;

import java.io.IOException;

/** Invalid bundle. The message is one line: what was found, what was expected, what to do. */
public final class BundleException extends IOException {
    public BundleException(String message) {
        super(message);
    }
}
