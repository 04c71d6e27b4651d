package com.google.ai.edge.litert;

import android.content.res.AssetManager;
import com.sun.jna.Memory;
import com.sun.jna.Pointer;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * As Java sees release 2.3 (litert/kotlin/src/main/kotlin/com/google/ai/edge/litert/Model.kt); what the app calls works
 * on a JVM, by the C API. CPU options are taken and not passed on.
 */
public final class CompiledModel extends JniHandle {
    private final Environment environment;
    private final Pointer model;

    private CompiledModel(Environment environment, Pointer model, Pointer options) throws LiteRtException {
        super(
                Native.made("LiteRtCreateCompiledModel", environment.handle, model, options),
                "LiteRtDestroyCompiledModel");
        this.environment = environment;
        this.model = model;
    }

    public static final class CpuOptions {
        public CpuOptions(Integer numThreads, Integer xnnPackFlags, String xnnPackWeightCachePath) {}
    }

    public static final class Options {
        private final Accelerator accelerator;

        public Options(Set<? extends Accelerator> accelerators) {
            accelerator = accelerators.iterator().next();
        }

        public Options(Accelerator... accelerators) {
            accelerator = accelerators[0];
        }

        public void setCpuOptions(CpuOptions options) {}
    }

    public static CompiledModel create(AssetManager assets, String name, Options options, Environment environment)
            throws LiteRtException {
        throw new LiteRtException(5, "there are no assets on a JVM");
    }

    public static CompiledModel create(String path, Options options, Environment environment) throws LiteRtException {
        Pointer model = Native.made("LiteRtCreateModelFromFile", environment.handle, path);
        Pointer chosen = Native.made("LiteRtCreateOptions");
        int set = options.accelerator == Accelerator.GPU ? 2 : 1;
        Native.call("LiteRtSetOptionsHardwareAccelerators", chosen, set);
        return new CompiledModel(environment, model, chosen);
    }

    public List<TensorBuffer> createInputBuffers() throws LiteRtException {
        return Collections.singletonList(new TensorBuffer(environment, model, handle, "Input"));
    }

    public List<TensorBuffer> createOutputBuffers() throws LiteRtException {
        return Collections.singletonList(new TensorBuffer(environment, model, handle, "Output"));
    }

    public List<TensorBuffer> run(List<TensorBuffer> inputs) throws LiteRtException {
        List<TensorBuffer> outputs = createOutputBuffers();
        run(inputs, outputs);
        return outputs;
    }

    public void run(List<TensorBuffer> inputs, List<TensorBuffer> outputs) throws LiteRtException {
        assertNotDestroyed();
        Native.call("LiteRtRunCompiledModel", handle, Native.FIRST, Native.ONE, array(inputs), Native.ONE,
                array(outputs));
    }

    public void run(Map<String, TensorBuffer> inputs, Map<String, TensorBuffer> outputs, String signature)
            throws LiteRtException {
        throw new LiteRtException(5, "the app does not call it");
    }

    private static Memory array(List<TensorBuffer> buffers) {
        buffers.get(0).assertNotDestroyed();
        Memory items = new Memory(8);
        items.setPointer(0, buffers.get(0).handle);
        return items;
    }
}
