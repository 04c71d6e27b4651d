package org.stlm_edge.core;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.File;
import java.nio.file.Path;
import java.util.Collections;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Bundles exported for android, the real .tflite run by the real LiteRT. */
class LiteRtTest {
    private static final Path BUNDLES = new File(System.getProperty("bundles")).toPath();

    /** Beside the bundle lie the maps of Python's interpreter; Python compares the file that is written. */
    @ParameterizedTest
    @ValueSource(strings = {"fp32", "fp16", "int8"})
    void anExportedBundleSaysWhatItSaysInPython(String precision) throws Exception {
        Bundle bundle = Bundle.open(BUNDLES.resolve(precision).toFile());
        long started = System.nanoTime();
        Model model = new LiteRt(bundle.artifact(), LiteRt.CPU);
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

    /** The app relies on it: with the GPU alone there is no silent fall-back to the CPU. */
    @Test
    void withoutAGpuTheGpuIsRefused() {
        File artifact = BUNDLES.resolve("fp32/model.tflite").toFile();
        assertThrows(Exception.class, () -> new LiteRt(artifact, LiteRt.GPU));
    }
}
