// A golden image decoded and resized here as training did it, to see whether this device's way to the network differs.
// Never compiled and never run so far.

import Foundation
import ImageIO

struct Decoded {
    let rgb: [UInt8], width: Int, height: Int
}

/// The bytes of an RGB PNG as they stand in it: drawn into a context they would go through colour management.
func decoded(_ file: URL) throws -> Decoded {
    guard let source = CGImageSourceCreateWithURL(file as CFURL, nil),
        let image = CGImageSourceCreateImageAtIndex(source, 0, nil), image.bitsPerComponent == 8,
        image.bitsPerPixel == 24 || image.bitsPerPixel == 32, let data = image.dataProvider?.data as Data?
    else { throw Problem(description: "\(file.lastPathComponent): not a PNG with 8 bits of red, green and blue") }
    let bytes = [UInt8](data), step = image.bitsPerPixel / 8
    var rgb = [UInt8]()
    rgb.reserveCapacity(3 * image.width * image.height)
    for y in 0..<image.height {
        for x in 0..<image.width {
            let at = y * image.bytesPerRow + x * step
            rgb += bytes[at..<at + 3]
        }
    }
    return Decoded(rgb: rgb, width: image.width, height: image.height)
}

/// size×size×3: the antialiased bilinear resize of Pillow, in its fixed point, rows first and then columns.
func resizedImage(_ file: URL, to size: Int) throws -> [UInt8] {
    let image = try decoded(file)
    let narrow = resized(image.rgb, rows: image.height, from: image.width, to: size)
    let upright = transposed(narrow, rows: image.height, columns: size)
    let short = resized(upright, rows: size, from: image.height, to: size)
    return transposed(short, rows: size, columns: size)
}

/// Each row of RGB pixels shortened or lengthened to `to` pixels.
func resized(_ rgb: [UInt8], rows: Int, from: Int, to: Int) -> [UInt8] {
    let bits = 22, scale = Double(from) / Double(to), reach = max(scale, 1)
    var out = [UInt8](repeating: 0, count: rows * to * 3)
    for x in 0..<to {
        let centre = (Double(x) + 0.5) * scale
        let first = max(Int(centre - reach + 0.5), 0), end = min(Int(centre + reach + 0.5), from)
        let shares = (first..<end).map { max(0, 1 - abs((Double($0) - centre + 0.5) / reach)) }
        let total = shares.reduce(0, +)
        let weights = shares.map { Int(0.5 + $0 / total * Double(1 << bits)) }
        for y in 0..<rows {
            for channel in 0..<3 {
                var sum = 1 << (bits - 1)
                for (k, weight) in weights.enumerated() {
                    sum += weight * Int(rgb[(y * from + first + k) * 3 + channel])
                }
                out[(y * to + x) * 3 + channel] = UInt8(min(255, sum >> bits))
            }
        }
    }
    return out
}

func transposed(_ rgb: [UInt8], rows: Int, columns: Int) -> [UInt8] {
    var out = [UInt8](repeating: 0, count: rgb.count)
    for y in 0..<rows {
        for x in 0..<columns {
            for channel in 0..<3 { out[(x * rows + y) * 3 + channel] = rgb[(y * columns + x) * 3 + channel] }
        }
    }
    return out
}
