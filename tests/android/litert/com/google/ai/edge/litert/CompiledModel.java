package com.google.ai.edge.litert;

import android.content.res.AssetManager;
import com.sun.jna.Callback;
import com.sun.jna.Memory;
import com.sun.jna.Pointer;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * The API of release 2.3 (litert/kotlin/src/main/kotlin/com/google/ai/edge/litert/Model.kt); the methods that the app
 * calls work on a JVM, by the C API.
 */
public final class CompiledModel extends JniHandle {
    private static final Freed KEPT = memory -> {}; // Java frees it

    private final Environment environment;
    private final Pointer model;

    /** Callback of the C API for a payload that is no longer needed. */
    public interface Freed extends Callback {
        void call(Pointer memory);
    }

    private CompiledModel(Environment environment, Pointer model, Pointer options) throws LiteRtException {
        super(
                Native.made("LiteRtCreateCompiledModel", environment.handle, model, options),
                "LiteRtDestroyCompiledModel");
        this.environment = environment;
        this.model = model;
    }

    public static final class CpuOptions {
        final Integer numThreads;

        public CpuOptions(Integer numThreads, Integer xnnPackFlags, String xnnPackWeightCachePath) {
            this.numThreads = numThreads;
        }
    }

    public static final class Options {
        private final Accelerator accelerator;
        private Memory cpu;

        public Options(Set<? extends Accelerator> accelerators) {
            accelerator = accelerators.iterator().next();
        }

        public Options(Accelerator... accelerators) {
            accelerator = accelerators[0];
        }

        /** Options, which the C API takes as TOML under the accelerator's name. */
        public void setCpuOptions(CpuOptions options) {
            String text = "num_threads = " + options.numThreads + "\n";
            cpu = new Memory(text.length() + 1);
            cpu.setString(0, text);
        }
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
        if (options.cpu != null) {
            Native.call("LiteRtAddOpaqueOptions", chosen,
                    Native.made("LiteRtCreateOpaqueOptions", "xnnpack", options.cpu, KEPT));
        }
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
