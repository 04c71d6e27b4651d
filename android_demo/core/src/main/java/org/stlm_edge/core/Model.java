package org.stlm_edge.core;

/** Runtime of the network. */
public interface Model {
    /**
     * Returns the anomaly map S×S of an RGB image of S×S pixels, three bytes each.
     *
     * @throws Exception if the runtime fails
     */
    float[] run(byte[] rgb) throws Exception;
}
