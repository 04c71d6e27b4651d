// Does a Core ML bundle say on this device what the trained model said, on which unit does it run, and how fast?
//
// Never compiled and never run so far: it was written on a machine without Swift, against Apple's documentation.
// iOS 17.4 or macOS 14.4 (MLComputePlan). No package besides Apple's frameworks.

import CoreML
import CoreVideo
import Foundation

let version = "0.1.0"  // of stlm-edge, whose bundles and bench.json these are

struct Problem: Error, CustomStringConvertible {
    let description: String
}

// What is read of manifest.json; the names are the manifest's own.
struct Manifest: Decodable {
    struct Input: Decodable { let size: Int }
    struct DecisionThreshold: Decodable { let value: Double }
    struct Tensor: Decodable { let file: String, encoding: String }
    struct Map: Decodable { let file: String, shape: [Int], stride: Int, offset: Int }
    struct Golden: Decodable {
        let name: String, image: String, anomalous: Bool, tensor: Tensor, map: Map, score: Double
    }
    struct File: Decodable { let path: String, bytes: Int }
    struct Teacher: Decodable { let teacher: String? }
    let target: String, runtime: String, precision: String, artifact: String
    let input: Input, decision_threshold: DecisionThreshold, exported_threshold: DecisionThreshold
    let verdict_delta: Double
    let provenance: Teacher, files: [File], golden: [Golden]
}

/// Checks the bundle in `folder` and returns bench.json. Throws `Problem` or Core ML's own errors.
func selfCheck(bundle folder: URL, units: MLComputeUnits = .all, queries: Int = 1024, seconds: Double = 60)
    async throws -> Data
{
    let text = try Data(contentsOf: folder.appendingPathComponent("manifest.json"))
    let manifest = try JSONDecoder().decode(Manifest.self, from: text)
    guard manifest.runtime == "coreml" else {
        throw Problem(description: "\(folder.path): made for \(manifest.runtime), not for Core ML")
    }
    let clock = ContinuousClock()
    let configuration = MLModelConfiguration()
    configuration.computeUnits = units

    let start = clock.now
    let compiled = try await MLModel.compileModel(at: folder.appendingPathComponent(manifest.artifact))
    defer { try? FileManager.default.removeItem(at: compiled) }
    let model = try await MLModel.load(contentsOf: compiled, configuration: configuration)
    let loadTime = milliseconds(clock.now - start)
    guard let metadata = model.modelDescription.metadata[.creatorDefinedKey] as? [String: String],
        let stored = metadata["stlm_edge.threshold"].flatMap(Double.init), stored == manifest.exported_threshold.value
    else { throw Problem(description: "\(manifest.artifact): not the manifest's exported_threshold; export again") }

    var firstTime: Double?
    var golden: [[String: Any]] = []
    var wrong: [String] = []
    let limit = manifest.precision == "fp16" ? 5e-3 : Double.infinity
    for image in manifest.golden {
        let expected = try floats(folder.appendingPathComponent(image.map.file))
        let tensor = try storedTensor(image.tensor, in: folder, size: manifest.input.size)
        let begin = clock.now
        let (map, score) = try predict(model, tensor, manifest.input.size)
        firstTime = firstTime ?? milliseconds(clock.now - begin)
        let row = try compare(image, manifest, map, score, expected)
        var entry = row.json
        let resized = try resizedImage(folder.appendingPathComponent(image.image), to: manifest.input.size)
        let off = zip(resized, tensor).map { abs(Int($0) - Int($1)) }.max() ?? 0
        entry["resize_max_diff"] = off
        golden.append(entry)
        if off > 1 {
            wrong.append("\(image.name): decoding and resizing differ by \(off) grey levels, at most 1 is allowed")
        }
        if !row.finite || row.largest > limit { wrong.append("\(image.name): the map differs by \(row.largest)") }
        if row.failed { wrong.append("\(image.name): another verdict") }
    }

    var timing = Timing()
    if wrong.isEmpty {
        let inputs = try manifest.golden.prefix(8).map { golden in
            let tensor = try storedTensor(golden.tensor, in: folder, size: manifest.input.size)
            let image = MLFeatureValue(pixelBuffer: try pixelBuffer(tensor, manifest.input.size))
            return try MLDictionaryFeatureProvider(dictionary: ["image": image])
        }
        func round(_ count: Int) async throws -> [Double] {
            var answered: [Double] = []
            for number in 0..<count {
                let before = clock.now
                _ = try await model.prediction(from: inputs[number % inputs.count])
                answered.append(milliseconds(clock.now - before))
            }
            return answered
        }
        // Warm until the medians of three rounds lie within 5%; then ten rounds, or more until both limits are reached.
        var last: [Double] = []
        while !timing.steady && timing.warmup < 25 * 8 {
            last = Array((last + [percentile(try await round(8), 0.5)]).suffix(3))
            timing.warmup += 8
            timing.steady = last.count == 3 && last.max()! <= 1.05 * last.min()!
        }
        let wanted = max(Double(queries), 1000 * seconds / max(last.last ?? 1, 1e-3))
        while timing.rounds.count < 10 || timing.all.count < queries || timing.all.reduce(0, +) < 1000 * seconds {
            timing.rounds.append(try await round(max(1, Int((wanted / 10).rounded(.up)))))
        }
    }

    let placed = try await placement(of: compiled, configuration)
    let row = benchRow(manifest, folder, golden, wrong, loadTime, firstTime, timing, placed)
    return try benchFile(row)
}

/// What the timed rounds gave, in milliseconds.
struct Timing {
    var warmup = 0, steady = false, rounds: [[Double]] = []
    var all: [Double] { rounds.flatMap { $0 } }
}

/// The nearest-rank percentile.
func percentile(_ values: [Double], _ share: Double) -> Double {
    let sorted = values.sorted()
    return sorted[max(1, Int((share * Double(sorted.count)).rounded(.up))) - 1]
}

/// A p90 that holds with 99% confidence, as percentiles.py computes it; nil for fewer than 44 values.
func earlyStopping(_ values: [Double]) -> Double? {
    let n = Double(values.count)
    var slower = -1, seen = 0.0
    while slower + 1 < values.count {
        let k = Double(slower + 1)
        let ways = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)
        seen += exp(ways + k * log(0.1) + (n - k) * log(0.9))
        if seen > 0.01 { break }
        slower += 1
    }
    return slower < 0 ? nil : values.sorted()[values.count - slower - 1]
}

// MARK: Core ML

func predict(_ model: MLModel, _ tensor: [UInt8], _ size: Int) throws -> ([Float], Double) {
    let buffer = try pixelBuffer(tensor, size)
    let input = try MLDictionaryFeatureProvider(dictionary: ["image": MLFeatureValue(pixelBuffer: buffer)])
    let answer = try model.prediction(from: input)
    guard let map = answer.featureValue(for: "anomaly_map")?.multiArrayValue,
        let score = answer.featureValue(for: "score")?.multiArrayValue
    else { throw Problem(description: "the model has no outputs anomaly_map and score; export again") }
    return (MLShapedArray<Float>(converting: map).scalars, score[0].doubleValue)
}

/// RGB row by row as the BGRA pixel buffer that Core ML takes for an RGB image.
func pixelBuffer(_ rgb: [UInt8], _ size: Int) throws -> CVPixelBuffer {
    var made: CVPixelBuffer?
    CVPixelBufferCreate(nil, size, size, kCVPixelFormatType_32BGRA, nil, &made)
    guard let buffer = made, CVPixelBufferLockBaseAddress(buffer, []) == kCVReturnSuccess,
        let base = CVPixelBufferGetBaseAddress(buffer)?.assumingMemoryBound(to: UInt8.self)
    else { throw Problem(description: "no pixel buffer of \(size)×\(size)") }
    defer { CVPixelBufferUnlockBaseAddress(buffer, []) }
    let stride = CVPixelBufferGetBytesPerRow(buffer)
    for y in 0..<size {
        for x in 0..<size {
            let (to, from) = (y * stride + 4 * x, 3 * (y * size + x))
            base[to] = rgb[from + 2]
            base[to + 1] = rgb[from + 1]
            base[to + 2] = rgb[from]
            base[to + 3] = 255
        }
    }
    return buffer
}

/// How many of the program's operations each unit is to run. Printed one by one too: "operation<TAB>unit".
func placement(of compiled: URL, _ configuration: MLModelConfiguration) async throws -> [[String: Any]] {
    let plan = try await MLComputePlan.load(contentsOf: compiled, configuration: configuration)
    guard case let .program(program) = plan.modelStructure, let main = program.functions["main"] else {
        throw Problem(description: "not an mlprogram with a function called main; export again")
    }
    var counts: [String: Int] = [:]
    for operation in main.block.operations {
        guard let usage = plan.deviceUsage(for: operation) else { continue }  // constants run nowhere
        let unit: String
        switch usage.preferred {
        case .cpu: unit = "CPU"
        case .gpu: unit = "GPU"
        case .neuralEngine: unit = "Neural Engine"
        @unknown default: unit = "unknown"
        }
        counts[unit, default: 0] += 1
        print("\(operation.operatorName)\t\(unit)")
    }
    let asked = configuration.computeUnits == .all || configuration.computeUnits == .cpuAndNeuralEngine
    return counts.sorted { $0.key < $1.key }.map {
        ["by": $0.key, "nodes": $0.value, "fell_back": asked && $0.key == "CPU"]
    }
}

// MARK: Golden images

func floats(_ file: URL) throws -> [Float] {
    let data = try Data(contentsOf: file)
    return stride(from: 0, to: data.count - 3, by: 4).map { at in
        let bits = (0..<4).reduce(UInt32(0)) { $0 | UInt32(data[data.startIndex + at + $1]) << UInt32(8 * $1) }
        return Float(bitPattern: bits)
    }
}

/// The image as the export resized it, size×size×3: raw bytes, or a PNG where the bundle would be too large.
func storedTensor(_ tensor: Manifest.Tensor, in folder: URL, size: Int) throws -> [UInt8] {
    let file = folder.appendingPathComponent(tensor.file)
    let rgb = tensor.encoding == "raw" ? [UInt8](try Data(contentsOf: file)) : try decoded(file).rgb
    guard rgb.count == 3 * size * size else { throw Problem(description: "\(tensor.file): not \(size)×\(size)×3") }
    return rgb
}

struct Compared {
    let json: [String: Any], largest: Double, finite: Bool, failed: Bool
}

func compare(_ image: Manifest.Golden, _ manifest: Manifest, _ map: [Float], _ score: Double, _ expected: [Float])
    throws -> Compared
{
    let size = manifest.input.size, threshold = manifest.decision_threshold.value
    let places = stride(from: image.map.offset, to: size, by: image.map.stride)
    let sampled = places.flatMap { y in places.map { x in Double(map[y * size + x]) } }
    guard sampled.count == expected.count else { throw Problem(description: "\(image.map.file): another shape") }
    let differences = zip(sampled, expected).map { abs($0 - Double($1)) }
    let finite = map.allSatisfy(\.isFinite) && score.isFinite
    let dot = zip(sampled, expected).reduce(0) { $0 + $1.0 * Double($1.1) }
    let squares = sampled.reduce(0) { $0 + $1 * $1 } * expected.reduce(0) { $0 + Double($1) * Double($1) }
    let flipped = !finite || (score > threshold) != (image.score > threshold)
    let failed = !finite || (flipped && abs(image.score - threshold) > manifest.verdict_delta)
    let largest = finite ? differences.max() ?? 0 : Double.infinity
    let mean = differences.reduce(0, +) / Double(max(1, differences.count))
    let json: [String: Any] = [
        "name": image.name, "anomalous": image.anomalous,
        "max_abs_diff": orNull(finite ? largest : nil), "mean_abs_diff": orNull(finite ? mean : nil),
        "cosine": finite && squares > 0 ? dot / squares.squareRoot() : 0,
        "score": finite ? score : 0, "expected_score": image.score,
        "verdict": failed ? "failure" : flipped ? "flip" : "same",
    ]
    return Compared(json: json, largest: largest, finite: finite, failed: failed)
}

// MARK: bench.json, format version 1 (stlm_edge/schemas/bench-1.schema.json)

func benchRow(
    _ manifest: Manifest, _ folder: URL, _ golden: [[String: Any]], _ wrong: [String], _ loadTime: Double,
    _ firstTime: Double?, _ timing: Timing, _ placed: [[String: Any]]
) -> [String: Any] {
    func all(_ key: String) -> [Double] { golden.compactMap { $0[key] as? Double } }
    func mean(_ values: [Double]) -> Double { values.reduce(0, +) / Double(max(1, values.count)) }
    func verdicts(_ kinds: String...) -> Int { golden.filter { kinds.contains($0["verdict"] as? String ?? "") }.count }
    let finite = all("max_abs_diff").count == golden.count
    let scores = zip(all("score"), all("expected_score")).map { abs($0 - $1) }
    let parity: [String: Any] = [
        "max_abs_diff": orNull(finite ? all("max_abs_diff").max() : nil),
        "mean_abs_diff": orNull(finite ? mean(all("mean_abs_diff")) : nil),
        "cosine": mean(all("cosine")), "verdict_flips": verdicts("flip", "failure"),
        "verdict_failures": verdicts("failure"), "score_max_diff": scores.max() ?? 0,
        "resize_max_diff": golden.compactMap { $0["resize_max_diff"] as? Int }.max() ?? 0, "images": golden.count,
    ]
    let times = timing.all
    var latency: [String: Any]?
    if !times.isEmpty {
        latency = [
            "p50": percentile(times, 0.5), "p90": percentile(times, 0.9), "p99": percentile(times, 0.99),
            "p90_early_stopping": orNull(earlyStopping(times)),
        ]
    }
    let bytes = manifest.files.filter { $0.path.hasPrefix(manifest.artifact + "/") }.reduce(0) { $0 + $1.bytes }
    return [
        "name": folder.lastPathComponent, "bundle": folder.lastPathComponent, "device": NSNull(),
        "target": manifest.target, "runtime": "coreml", "precision": manifest.precision,
        "teacher": orNull(manifest.provenance.teacher), "input_size": manifest.input.size,
        "size_mb": Double(bytes) / 1e6, "threads": ProcessInfo.processInfo.activeProcessorCount,
        "passed": wrong.isEmpty, "failure": orNull(wrong.isEmpty ? nil : wrong.joined(separator: "; ")),
        "parity": parity, "threshold": manifest.decision_threshold.value, "verdict_delta": manifest.verdict_delta,
        "golden": golden, "load_ms": loadTime, "first_inference_ms": orNull(firstTime),
        "peak_memory_mb": NSNull(), "timed_even_if_wrong": false, "placement": placed, "warmup": timing.warmup,
        "steady": orNull(times.isEmpty ? nil : timing.steady), "queries": times.count,
        "seconds": orNull(times.isEmpty ? nil : times.reduce(0, +) / 1000),
        "latency_ms": orNull(latency), "end_to_end_ms": NSNull(), "throughput": [Any](), "energy_mj": NSNull(),
        "round_p50_ms": timing.rounds.map { percentile($0, 0.5) }, "accuracy": NSNull(),
    ]
}

func benchFile(_ row: [String: Any]) throws -> Data {
    var system = utsname()
    uname(&system)
    func text<T>(_ field: T) -> String {
        withUnsafeBytes(of: field) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }
    let process = ProcessInfo.processInfo
    let machine: [String: Any] = [
        "device": text(system.machine), "processor": NSNull(), "architecture": "arm64", "instructions": [String](),
        "cores": process.activeProcessorCount, "cores_of_machine": process.processorCount,
        "memory_gb": Double(process.physicalMemory) / 1e9, "virtual": NSNull(), "governor": NSNull(),
        "load_before": NSNull(), "load_after": NSNull(), "power_mode": process.isLowPowerModeEnabled ? "low" : "normal",
        "clocks": [String: Any](), "celsius_before": [String: Any](), "celsius_after": [String: Any](),
        "throttling_events": NSNull(), "system": process.operatingSystemVersionString, "kernel": text(system.release),
        "python": "none: Swift", "packages": ["Core ML": process.operatingSystemVersionString],
    ]
    let passed = row["passed"] as? Bool ?? false
    let p50 = (row["latency_ms"] as? [String: Any])?["p50"] as? Double
    let words = passed ? "same verdicts as the trained model" : "FAILED: \(row["failure"] ?? "")"
    let speed = p50.map { String(format: "; p50 %.1f ms", $0) } ?? ""
    let bench: [String: Any] = [
        "format_version": 1, "headline": "\(row["name"] ?? ""): \(words)\(speed)",
        "date": ISO8601DateFormatter().string(from: Date()), "command": "SelfCheck.swift", "stlm_edge": version,
        "machine": machine, "devices": [Any](), "data": NSNull(), "rows": [row],
    ]
    // `done` has to be the last key of the file, which a dictionary can't promise.
    let data = try JSONSerialization.data(withJSONObject: bench, options: [.sortedKeys])
    let text = String(decoding: data, as: UTF8.self)
    return Data((text.dropLast() + ",\"done\":true}").utf8)
}

func orNull(_ value: Any?) -> Any { value ?? NSNull() }

func milliseconds(_ duration: Duration) -> Double {
    Double(duration.components.seconds) * 1e3 + Double(duration.components.attoseconds) / 1e15
}
