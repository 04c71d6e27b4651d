package org.stlm_edge.core;

/** Anything that runs the network. */
public interface Model {
    /**
     * RGB of S×S pixels, three bytes each, in; the anomaly map, S×S, out.
     *
     * @throws Exception when the runtime fails
     */
    float[] run(byte[] rgb) throws Exception;
}
