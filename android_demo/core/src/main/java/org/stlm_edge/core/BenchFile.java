package org.stlm_edge.core;

import com.google.gson.stream.JsonWriter;
import java.io.File;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.OutputStreamWriter;
import java.io.Writer;
import java.nio.charset.StandardCharsets;
import java.text.SimpleDateFormat;
import java.util.Collections;
import java.util.Date;
import java.util.Locale;
import java.util.Map;
import java.util.TimeZone;

/**
 * Writes {@code bench.json}, the same on every device: one row for one artifact on one runtime. What was not measured
 * is null. The last key, {@code done}, tells whoever waits for the file that it is whole.
 */
public final class BenchFile {
    public static final String NAME = "bench.json";

    /** What was measured on, and with what. A fact that the system does not tell is null. */
    public static final class Device {
        public String device;
        public String processor;
        public String architecture = "unknown";
        public int cores = 1;
        public Double memoryGb;
        public String system = "unknown";
        public String kernel = "unknown";
        /** Sensor to its temperature. */
        public Map<String, Double> celsiusBefore = Collections.emptyMap();

        public Map<String, Double> celsiusAfter = Collections.emptyMap();
        /** The language's runtime. */
        public String language = "unknown";

        /** Name to version. */
        public Map<String, String> packages;
        /** How the processor's clock is chosen. */
        public String governor;
        /** Whether the phone saves its battery. */
        public String powerMode;
    }

    /** The row's own facts. */
    public static final class Row {
        public String name;
        /** The bundle's name. */
        public String bundle;
        /** The runtime and the delegate that really ran. */
        public String runtime;

        public int threads = 1;
        public Double loadMs;
        /** Resident, of a process that did nothing else. */
        public Double peakMemoryMb;
        /** Why there is no check, or null. */
        public String failure;
        /** Null when it failed before. */
        public SelfCheck check;
        /** Null when it can't be read. */
        public Manifest manifest;
    }

    private BenchFile() {}

    /** Writes it whole or not at all. {@code version} is that of stlm-edge. */
    public static void write(File file, String version, String command, Device device, Row row) throws IOException {
        File temporary = new File(file.getPath() + ".tmp");
        try (Writer text = new OutputStreamWriter(new FileOutputStream(temporary), StandardCharsets.UTF_8);
                JsonWriter json = new JsonWriter(text)) {
            json.setIndent("  ");
            json.beginObject();
            json.name("format_version").value(1);
            json.name("headline").value(headline(row));
            json.name("date").value(now());
            json.name("command").value(command);
            json.name("stlm_edge").value(version);
            json.name("machine");
            machine(json, device, row.check == null ? null : row.check.throttlingEvents);
            json.name("devices").beginArray().endArray();
            json.name("data").nullValue();
            json.name("rows").beginArray();
            row(json, row);
            json.endArray();
            json.name("done").value(true);
            json.endObject();
        }
        if (!temporary.renameTo(file)) {
            throw new IOException(file + ": cannot be written");
        }
    }

    /** Whether this device gives the trained model's verdicts, and how fast it is, in one line. */
    public static String headline(Row row) {
        String failure = failure(row);
        if (failure != null) {
            return row.name + " FAILED: " + failure;
        }
        Parity parity = row.check.parity;
        int all = parity.rows.size();
        String line = row.name + ": same verdicts as the trained model on " + (all - parity.flips()) + " of " + all
                + " images";
        if (parity.flips() > 0) {
            line += " (" + parity.flips() + " within the tolerance of the threshold)";
        }
        double p50 = new Latency(row.check.milliseconds).p50;
        return line + String.format(Locale.ROOT, "; p50 %.1f ms", p50);
    }

    private static String failure(Row row) {
        if (row.check == null) {
            return row.failure == null ? "not measured" : row.failure;
        }
        String problems = row.check.parity.problems();
        return problems.isEmpty() ? row.failure : problems;
    }

    private static String now() {
        SimpleDateFormat format = new SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'Z'", Locale.ROOT);
        format.setTimeZone(TimeZone.getTimeZone("UTC"));
        return format.format(new Date());
    }

    private static void machine(JsonWriter json, Device device, Integer throttlingEvents) throws IOException {
        json.beginObject();
        json.name("device").value(device.device);
        json.name("processor").value(device.processor);
        json.name("architecture").value(device.architecture);
        json.name("instructions").beginArray().endArray();
        json.name("cores").value(device.cores);
        json.name("cores_of_machine").value(device.cores);
        json.name("memory_gb").value(device.memoryGb);
        json.name("virtual").nullValue();
        json.name("governor").value(device.governor);
        json.name("load_before").nullValue(); // Android keeps /proc/loadavg from apps
        json.name("load_after").nullValue();
        json.name("power_mode").value(device.powerMode);
        json.name("clocks").beginObject().endObject();
        celsius(json, "celsius_before", device.celsiusBefore);
        celsius(json, "celsius_after", device.celsiusAfter);
        json.name("throttling_events").value(throttlingEvents);
        json.name("system").value(device.system);
        json.name("kernel").value(device.kernel);
        json.name("python").value("none: " + device.language);
        json.name("packages").beginObject();
        for (Map.Entry<String, String> entry : device.packages.entrySet()) {
            json.name(entry.getKey()).value(entry.getValue());
        }
        json.endObject().endObject();
    }

    private static void celsius(JsonWriter json, String name, Map<String, Double> sensors) throws IOException {
        json.name(name).beginObject();
        for (Map.Entry<String, Double> sensor : sensors.entrySet()) {
            json.name(sensor.getKey()).value(sensor.getValue());
        }
        json.endObject();
    }

    private static void row(JsonWriter json, Row row) throws IOException {
        Manifest manifest = row.manifest;
        boolean measured = row.check != null && !Double.isInfinite(row.check.parity.maxAbsDiff());
        boolean timed = row.check != null && row.check.milliseconds.length > 0;
        json.beginObject();
        json.name("name").value(row.name);
        json.name("bundle").value(row.bundle);
        json.name("device").nullValue(); // this one
        json.name("target").value(manifest == null ? null : manifest.target);
        json.name("runtime").value(row.runtime);
        json.name("precision").value(manifest == null ? "unknown" : manifest.precision);
        json.name("teacher").value(manifest == null ? null : manifest.teacher);
        json.name("input_size").value(manifest == null ? 1 : manifest.size);
        json.name("size_mb").value(manifest == null ? 0 : manifest.files.get(manifest.artifact).bytes / 1e6);
        json.name("threads").value(row.threads);
        json.name("passed").value(failure(row) == null);
        json.name("failure").value(failure(row));
        json.name("parity");
        parity(json, measured ? row.check.parity : null);
        json.name("threshold").value(manifest == null ? null : (Number) manifest.decisionThreshold.value);
        json.name("verdict_delta").value(manifest == null ? null : (Number) manifest.verdictDelta);
        json.name("golden").beginArray();
        for (Parity.Row answer : measured ? row.check.parity.rows : Collections.<Parity.Row>emptyList()) {
            answer(json, answer);
        }
        json.endArray();
        json.name("load_ms").value(row.loadMs);
        json.name("first_inference_ms").value(row.check == null ? null : (Number) row.check.firstInferenceMs);
        json.name("peak_memory_mb").value(row.peakMemoryMb);
        json.name("timed_even_if_wrong").value(row.check != null && row.check.timedEvenIfWrong);
        json.name("placement").nullValue(); // LiteRT does not tell
        json.name("warmup").value(timed ? row.check.warmup : 0);
        json.name("steady").value(timed ? (Boolean) row.check.steady : null);
        json.name("queries").value(timed ? row.check.milliseconds.length : 0);
        json.name("seconds").value(timed ? (Number) (sum(row.check.milliseconds) / 1e3) : null);
        latency(json, "latency_ms", timed ? new Latency(row.check.milliseconds) : null);
        latency(json, "end_to_end_ms", timed ? new Latency(row.check.wholeMilliseconds) : null);
        json.name("throughput").beginArray().endArray();
        json.name("energy_mj").value(timed ? row.check.millijoules : null);
        json.name("round_p50_ms").beginArray();
        for (double median : timed ? row.check.roundMedians : Collections.<Double>emptyList()) {
            json.value(median);
        }
        json.endArray();
        json.name("accuracy").nullValue();
        json.name("quantiles_ms").beginArray();
        for (int percent = 0; timed && percent <= 100; percent++) {
            json.value(Latency.percentile(row.check.milliseconds, percent / 100.0));
        }
        json.endArray();
        json.endObject();
    }

    private static double sum(double[] values) {
        double sum = 0;
        for (double value : values) {
            sum += value;
        }
        return sum;
    }

    private static void latency(JsonWriter json, String name, Latency latency) throws IOException {
        json.name(name);
        if (latency == null) {
            json.nullValue();
            return;
        }
        json.beginObject();
        json.name("p50").value(latency.p50).name("p90").value(latency.p90).name("p99").value(latency.p99);
        json.name("p90_early_stopping").value(latency.p90EarlyStopping);
        json.endObject();
    }

    private static void parity(JsonWriter json, Parity parity) throws IOException {
        if (parity == null) {
            json.nullValue();
            return;
        }
        json.beginObject();
        json.name("max_abs_diff").value(parity.maxAbsDiff());
        json.name("mean_abs_diff").value(parity.meanAbsDiff());
        json.name("cosine").value(parity.cosine());
        json.name("verdict_flips").value(parity.flips());
        json.name("verdict_failures").value(parity.failures());
        json.name("score_max_diff").value(parity.scoreMaxDiff());
        json.name("resize_max_diff").value(parity.resizeMaxDiff());
        json.name("images").value(parity.rows.size());
        json.endObject();
    }

    private static void answer(JsonWriter json, Parity.Row answer) throws IOException {
        json.beginObject();
        json.name("name").value(answer.name);
        json.name("anomalous").value(answer.anomalous);
        json.name("max_abs_diff").value(answer.maxAbsDiff);
        json.name("mean_abs_diff").value(answer.meanAbsDiff);
        json.name("cosine").value(answer.cosine);
        json.name("score").value(answer.score);
        json.name("expected_score").value(answer.expectedScore);
        json.name("verdict").value(answer.verdict);
        json.name("resize_max_diff").value(answer.resizeMaxDiff);
        json.endObject();
    }
}
