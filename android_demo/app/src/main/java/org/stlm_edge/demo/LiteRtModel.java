package org.stlm_edge.demo;

import android.content.Context;
import com.google.ai.edge.litert.Accelerator;
import com.google.ai.edge.litert.CompiledModel;
import com.google.ai.edge.litert.Environment;
import com.google.ai.edge.litert.TensorBuffer;
import java.util.List;
import org.stlm_edge.core.Bundle;
import org.stlm_edge.core.BundleException;
import org.stlm_edge.core.Judge;

/** A bundle's .tflite on LiteRT: float32 RGB 0 to 255 in, anomaly map out. Not thread-safe. */
final class LiteRtModel implements Judge.Loaded {
    private final Environment environment;
    private final CompiledModel model;
    private final List<TensorBuffer> inputs;
    private final List<TensorBuffer> outputs;
    private final float[] image;
    private final int size;

    /**
     * Loads the model. The GPU is requested without a fallback: LiteRT then refuses a graph that it cannot run
     * entirely, instead of silently running it on the CPU.
     *
     * @throws Exception when LiteRT refuses it
     */
    LiteRtModel(Context context, Bundle bundle, boolean gpu, int threads) throws Exception {
        if (!bundle.manifest.runtime.equals("litert")) {
            throw new BundleException(context.getString(R.string.other_runtime, bundle.manifest.runtime));
        }
        size = bundle.manifest.size;
        image = new float[size * size * 3];
        CompiledModel.Options options = new CompiledModel.Options(gpu ? Accelerator.GPU : Accelerator.CPU);
        if (!gpu) {
            options.setCpuOptions(new CompiledModel.CpuOptions(threads, null, null));
        }
        environment = Environment.create(context);
        CompiledModel opened = null;
        try {
            opened = CompiledModel.create(bundle.artifact().getPath(), options, environment);
            inputs = opened.createInputBuffers();
            outputs = opened.createOutputBuffers();
        } catch (Exception | Error refused) {
            if (opened != null) {
                opened.close();
            }
            environment.close();
            throw refused;
        }
        model = opened;
    }

    @Override
    public float[] run(byte[] rgb) throws Exception {
        for (int i = 0; i < image.length; i++) {
            image[i] = rgb[i] & 255;
        }
        inputs.get(0).writeFloat(image);
        model.run(inputs, outputs);
        float[] map = outputs.get(0).readFloat();
        if (map.length != size * size) {
            throw new IllegalStateException("the model's output has " + map.length + " values, not " + size * size);
        }
        return map;
    }

    @Override
    public void close() {
        for (TensorBuffer buffer : inputs) {
            buffer.close();
        }
        for (TensorBuffer buffer : outputs) {
            buffer.close();
        }
        model.close();
        environment.close();
    }
}
