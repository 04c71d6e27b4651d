package org.stlm_edge.demo;

final class R {
    static final class string {
        static final int other_runtime = 1;
    }
}
