package org.stlm_edge.core;

import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Set;
import java.util.regex.Pattern;

/** {@code manifest.json}, format version 1: what a device needs to know of a bundle, read strictly. */
public final class Manifest {
    public static final String NAME = "manifest.json";
    public static final int MAX_BYTES = 1 << 20;
    public static final String PREPROCESSING = "exif-upright, rgb, antialiased-bilinear (Pillow), v1";
    public static final String SIXTEEN_BIT = "round(value / 257)";
    public static final String SCORE_RULE = "mean of the 100 highest values of the S×S map";

    private static final int MAX_SIZE = 4096;
    private static final long MAX_GOLDEN_BYTES = 8_000_000;
    private static final String PART = "[A-Za-z0-9_][A-Za-z0-9._\\-]{0,99}";
    private static final Pattern WORD = Pattern.compile(PART);
    private static final Pattern PATH = Pattern.compile(PART + "(/" + PART + "){0,4}");
    private static final Pattern SHA256 = Pattern.compile("[0-9a-f]{64}");

    /** Where the threshold between normal and anomalous lies; scores and map values are 0 to 1. */
    public static final class DecisionThreshold {
        /** An image whose score is above it is anomalous. */
        public final double value;

        public final double medianScore;
        /** Map value shown as the lowest colour. */
        public final double mapLow;

        public final double mapHigh;

        DecisionThreshold(Fields fields) throws BundleException {
            value = fields.number("value");
            medianScore = fields.number("median_score");
            mapLow = fields.number("map_low");
            mapHigh = fields.number("map_high");
            fields.number("false_alarm_rate", 0, 1);
            fields.integer("images", 1, Long.MAX_VALUE);
            fields.oneOf("method", "quantile", "maximum plus margin");
            fields.number("margin", 0, Double.MAX_VALUE);
            fields.oneOf("source", "training", "site");
            fields.end();
            if (value < medianScore || mapHigh < mapLow) {
                throw new BundleException(fields.at("value < median_score, or map_high < map_low"));
            }
        }
    }

    /** A file of the bundle: a plain path inside it, and what its content must be. */
    public static final class ListedFile {
        public final String path;
        public final String sha256;
        public final long bytes;

        ListedFile(Fields fields) throws BundleException {
            path = fields.string("path", PATH, "a plain path inside the bundle such as golden/01.png");
            sha256 = fields.string("sha256", SHA256, "64 hexadecimal digits");
            bytes = fields.integer("bytes", 1, 1L << 31);
            fields.end();
        }
    }

    /** An image and what the trained model said of it: its score, and its map at [offset::stride] on both axes. */
    public static final class Golden {
        public final String name;
        public final boolean anomalous;
        public final String image;
        public final String tensor;
        /** True: {@link #tensor} is a PNG; false: raw bytes, size×size×3. */
        public final boolean tensorIsPng;

        public final String map;
        /** Side of the sampled map. */
        public final int mapSide;

        public final int stride;
        public final int offset;
        public final double score;

        Golden(Fields fields, int size, Map<String, ListedFile> listed) throws BundleException {
            name = fields.string("name", WORD, "letters, digits, '.', '_' and '-'");
            anomalous = fields.bool("anomalous");
            image = fields.string("image", PATH, "a plain path");
            score = fields.number("score");
            Fields stored = fields.object("tensor");
            tensor = stored.string("file", PATH, "a plain path");
            stored.shape("shape", size, size, 3);
            stored.oneOf("dtype", "uint8");
            tensorIsPng = stored.oneOf("encoding", "raw", "png").equals("png");
            stored.end();
            Fields sampled = fields.object("map");
            map = sampled.string("file", PATH, "a plain path");
            stride = (int) sampled.integer("stride", 1, MAX_SIZE);
            offset = (int) sampled.integer("offset", 0, MAX_SIZE);
            mapSide = offset < size ? (size - offset + stride - 1) / stride : 0;
            sampled.shape("shape", mapSide, mapSide);
            sampled.oneOf("dtype", "float32");
            sampled.oneOf("byte_order", "little");
            sampled.end();
            fields.end();
            if (mapSide == 0) {
                throw new BundleException(sampled.at("offset") + ": " + offset + " lies outside the map");
            }
            for (String path : new String[] {image, tensor, map}) {
                if (!listed.containsKey(path)) {
                    throw new BundleException(fields.at(path) + " is not in files");
                }
            }
            checkBytes(fields, listed.get(map), 4L * mapSide * mapSide);
            if (!tensorIsPng) {
                checkBytes(fields, listed.get(tensor), 3L * size * size);
            }
        }

        private static void checkBytes(Fields fields, ListedFile file, long expected) throws BundleException {
            if (file.bytes != expected) {
                throw new BundleException(
                        fields.at(file.path) + ": " + file.bytes + " bytes, expected " + expected);
            }
        }
    }

    public final String target;
    public final String runtime;
    public final String precision;
    /** By path. */
    public final Map<String, ListedFile> files;
    /** The packed model, one of {@link #files}. */
    public final String artifact;
    /** Side S of the square input, pixels. */
    public final int size;

    public final DecisionThreshold decisionThreshold;
    /** The threshold of the export, which the artifact's own metadata holds; calibration on site does not change it. */
    public final DecisionThreshold exportedThreshold;
    /** How near to the threshold a verdict may flip between the trained model and this one. */
    public final double verdictDelta;
    /** What the model was distilled from, or null. */
    public final String teacher;

    public final List<Golden> golden;

    /** Reads the text of a manifest. Throws when anything in it is not as format version 1 says. */
    public static Manifest parse(byte[] data) throws BundleException {
        if (data.length > MAX_BYTES) {
            throw new BundleException(NAME + ": larger than " + MAX_BYTES + " bytes, the limit for this file");
        }
        Object value = Json.parse(data, NAME);
        Object version = value instanceof Map ? ((Map<?, ?>) value).get("format_version") : null;
        if (version != null && !Long.valueOf(1).equals(version)) {
            throw new BundleException(
                    NAME + ": bundle format " + Json.shorten(String.valueOf(version), 20)
                            + ", this app reads 1; export the bundle again");
        }
        return new Manifest(new Fields(value, NAME));
    }

    private Manifest(Fields fields) throws BundleException {
        fields.integer("format_version", 1, 1);
        fields.object("tool_versions");
        target = word(fields, "target");
        runtime = word(fields, "runtime");
        precision = word(fields, "precision");
        files = files(fields);
        artifact = fields.string("artifact", PATH, "a plain path");
        if (!files.containsKey(artifact)) {
            for (String path : files.keySet()) {
                if (path.startsWith(artifact + "/")) {
                    throw new BundleException(fields.at("artifact") + ": " + artifact + " is a folder, made for "
                            + runtime + "; expected one file, export a bundle by  stlm-export --target android");
                }
            }
            throw new BundleException(fields.at("artifact") + ": " + artifact + " is not in files");
        }
        size = input(fields.object("input"));
        outputs(fields.object("outputs"), size);
        same(fields, "score_rule", SCORE_RULE);
        decisionThreshold = new DecisionThreshold(fields.object("decision_threshold"));
        exportedThreshold = new DecisionThreshold(fields.object("exported_threshold"));
        verdictDelta = fields.number("verdict_delta", 0, Double.MAX_VALUE);
        double expected = 0.01 * (decisionThreshold.value - decisionThreshold.medianScore);
        if (Math.abs(verdictDelta - expected) > Math.max(1e-6 * Math.max(verdictDelta, expected), 1e-12)) {
            throw new BundleException(fields.at("verdict_delta") + ": expected " + expected + " of this threshold");
        }
        Object taught = ((Map<?, ?>) provenance(fields)).get("teacher");
        teacher = taught == null ? null : Json.shorten(String.valueOf(taught), 200);
        fields.integer("parameters", 0, Long.MAX_VALUE);
        if (fields.any("flops") != null) {
            fields.integer("flops", Long.MIN_VALUE, Long.MAX_VALUE);
        }
        parity(fields.object("parity"));
        fields.bool("parity_loss_allowed");
        golden = golden(fields, size, files);
        fields.end();
    }

    private static Object provenance(Fields fields) throws BundleException {
        fields.object("provenance");
        return fields.any("provenance");
    }

    private static String word(Fields fields, String key) throws BundleException {
        return fields.string(key, WORD, "letters, digits, '.', '_' and '-'");
    }

    private static void same(Fields fields, String key, String expected) throws BundleException {
        String found = fields.string(key);
        if (!found.equals(expected)) {
            throw fields.wrong(key, found, "what this app does, '" + expected + "'; export again");
        }
    }

    private static Map<String, ListedFile> files(Fields fields) throws BundleException {
        Map<String, ListedFile> files = new LinkedHashMap<>();
        Set<String> folded = new HashSet<>(Collections.singleton(NAME));
        List<?> entries = fields.list("files", 1, 1000);
        for (int i = 0; i < entries.size(); i++) {
            ListedFile file = new ListedFile(new Fields(entries.get(i), fields.at("files[" + i + "]")));
            if (!folded.add(file.path.toLowerCase(Locale.ROOT))) {
                throw new BundleException(fields.at("files") + ": a path is listed twice, or the manifest itself is");
            }
            files.put(file.path, file);
        }
        return Collections.unmodifiableMap(files);
    }

    private static int input(Fields fields) throws BundleException {
        word(fields, "name");
        int size = (int) fields.integer("size", 32, MAX_SIZE);
        if (size % 32 != 0) {
            throw fields.wrong("size", size, "a multiple of 32");
        }
        fields.oneOf("layout", "NHWC");
        fields.oneOf("dtype", "uint8", "float32"); // 0 to 255 in either
        fields.oneOf("color", "RGB");
        same(fields, "preprocessing", PREPROCESSING);
        same(fields, "sixteen_bit", SIXTEEN_BIT);
        fields.end();
        return size;
    }

    private static void outputs(Fields fields, int size) throws BundleException {
        Fields map = fields.object("anomaly_map");
        word(map, "name");
        map.shape("shape", 1, 1, size, size);
        map.end();
        if (fields.any("score") != null) {
            Fields score = fields.object("score");
            word(score, "name");
            score.end();
        }
        fields.end();
    }

    private static void parity(Fields fields) throws BundleException {
        fields.number("max_abs_diff", 0, Double.MAX_VALUE);
        fields.number("mean_abs_diff", 0, Double.MAX_VALUE);
        fields.number("cosine");
        fields.integer("verdict_flips", 0, Long.MAX_VALUE);
        fields.integer("verdict_failures", 0, Long.MAX_VALUE);
        fields.integer("images", 1, Long.MAX_VALUE);
        fields.end();
    }

    private static List<Golden> golden(Fields fields, int size, Map<String, ListedFile> files) throws BundleException {
        List<Golden> golden = new ArrayList<>();
        Set<String> used = new HashSet<>();
        List<?> entries = fields.list("golden", 8, 64);
        for (int i = 0; i < entries.size(); i++) {
            Golden entry = new Golden(new Fields(entries.get(i), fields.at("golden[" + i + "]")), size, files);
            Collections.addAll(used, entry.image, entry.tensor, entry.map);
            golden.add(entry);
        }
        long total = 0;
        for (String path : used) {
            total += files.get(path).bytes;
        }
        if (total > MAX_GOLDEN_BYTES) {
            throw new BundleException(
                    fields.at("golden") + ": " + total + " bytes in all, at most " + MAX_GOLDEN_BYTES + " are allowed");
        }
        return Collections.unmodifiableList(golden);
    }
}
