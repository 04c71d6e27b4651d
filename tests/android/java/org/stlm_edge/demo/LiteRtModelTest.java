package org.stlm_edge.demo;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import android.content.Context;
import com.google.ai.edge.litert.LiteRtException;
import java.io.File;
import java.nio.file.Path;
import java.util.Collections;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.stlm_edge.core.BenchFile;
import org.stlm_edge.core.Bundle;
import org.stlm_edge.core.BundleException;
import org.stlm_edge.core.Fixture;
import org.stlm_edge.core.GoldenPicture;
import org.stlm_edge.core.SelfCheck;

/** The app's own model class, given bundles exported for android and the real LiteRT. */
class LiteRtModelTest {
    private static final Path BUNDLES = new File(System.getProperty("bundles")).toPath();

    private static Bundle bundle(String name) throws Exception {
        return Bundle.open(BUNDLES.resolve(name).toFile());
    }

    /** Beside the bundle lie the maps of Python's interpreter; Python compares the file that is written. */
    @ParameterizedTest
    @ValueSource(strings = {"fp32", "fp16", "int8"})
    void anExportedBundleSaysWhatItSaysInPython(String precision) throws Exception {
        Bundle bundle = bundle(precision);
        long started = System.nanoTime();
        try (LiteRtModel model = new LiteRtModel(new Context(), bundle, false, 1)) {
            double loadMs = (System.nanoTime() - started) / 1e6;
            float largest = 0;
            for (int i = 0; i < bundle.manifest.golden.size(); i++) {
                GoldenPicture golden = GoldenPicture.read(bundle, bundle.manifest.golden.get(i), Fixture::decode);
                float[] expected = Fixture.floats(BUNDLES.resolve(precision + "-maps").resolve(i + ".f32"));
                float[] found = model.run(golden.tensor);
                assertEquals(expected.length, found.length);
                for (int place = 0; place < found.length; place++) {
                    largest = Math.max(largest, Math.abs(expected[place] - found[place]));
                }
            }
            assertTrue(largest < 1e-6, precision + " differs from Python's interpreter by " + largest);
            SelfCheck check = SelfCheck.run(bundle, model, Fixture::decode, 20, (what, done, of) -> {});
            assertEquals("", check.parity.problems());
            BenchFile.Device device = new BenchFile.Device();
            device.packages = Collections.emptyMap();
            BenchFile.Row row = new BenchFile.Row();
            row.name = row.bundle = precision;
            row.runtime = "litert";
            row.manifest = bundle.manifest;
            row.check = check;
            row.loadMs = loadMs;
            BenchFile.write(BUNDLES.resolve(precision + ".json").toFile(), "self-check", device, row);
        }
    }

    /** The app relies on it: with the GPU alone there is no silent fall-back to the CPU. */
    @Test
    void withoutAGpuTheGpuIsRefused() throws Exception {
        Bundle bundle = bundle("fp32");
        assertThrows(LiteRtException.class, () -> new LiteRtModel(new Context(), bundle, true, 1));
    }

    @Test
    void aClosedModelIsNotAskedAndCanBeClosedAgain() throws Exception {
        Bundle bundle = bundle("int8");
        LiteRtModel model = new LiteRtModel(new Context(), bundle, false, 1);
        model.close();
        model.close();
        byte[] picture = new byte[bundle.manifest.size * bundle.manifest.size * 3];
        assertThrows(IllegalStateException.class, () -> model.run(picture));
        try (LiteRtModel again = new LiteRtModel(new Context(), bundle, false, 1)) {
            assertEquals(picture.length / 3, again.run(picture).length);
        }
    }

    @Test
    void aBundleForAnotherRuntimeIsRefusedInWords() throws Exception {
        Bundle onnx = bundle("onnx");
        BundleException problem =
                assertThrows(BundleException.class, () -> new LiteRtModel(new Context(), onnx, false, 1));
        assertTrue(problem.getMessage().contains("onnxruntime"), problem.getMessage());
    }
}
