package com.google.ai.edge.litert;

import android.content.res.AssetManager;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** Signatures alone, as Java sees release 2.3 (litert/kotlin/src/main/kotlin/com/google/ai/edge/litert/Model.kt). */
public final class CompiledModel extends JniHandle {
    private CompiledModel() {}

    public static final class CpuOptions {
        public CpuOptions(Integer numThreads, Integer xnnPackFlags, String xnnPackWeightCachePath) {}
    }

    public static final class Options {
        public Options(Set<? extends Accelerator> accelerators) {}

        public Options(Accelerator... accelerators) {}

        public void setCpuOptions(CpuOptions options) {}
    }

    public static CompiledModel create(AssetManager assets, String name, Options options, Environment environment)
            throws LiteRtException {
        return new CompiledModel();
    }

    public static CompiledModel create(String path, Options options, Environment environment) throws LiteRtException {
        return new CompiledModel();
    }

    public List<TensorBuffer> createInputBuffers() throws LiteRtException {
        return null;
    }

    public List<TensorBuffer> createOutputBuffers() throws LiteRtException {
        return null;
    }

    public List<TensorBuffer> run(List<TensorBuffer> inputs) throws LiteRtException {
        return null;
    }

    public void run(List<TensorBuffer> inputs, List<TensorBuffer> outputs) throws LiteRtException {}

    public void run(Map<String, TensorBuffer> inputs, Map<String, TensorBuffer> outputs, String signature)
            throws LiteRtException {}
}
