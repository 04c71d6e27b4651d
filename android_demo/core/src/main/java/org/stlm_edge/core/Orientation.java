package org.stlm_edge.core;

/** EXIF orientation, applied after the resize: a square is turned at no cost, a photograph would need a second copy. */
public final class Orientation {
    private Orientation() {}

    /**
     * The RGB square as a person sees it. {@code exif} is the tag Orientation (1 to 8; anything else means upright).
     */
    public static byte[] upright(byte[] rgb, int size, int exif) {
        if (exif < 2 || exif > 8) {
            return rgb;
        }
        byte[] turned = new byte[rgb.length];
        int last = size - 1;
        for (int y = 0; y < size; y++) {
            for (int x = 0; x < size; x++) {
                int alongX = exif >= 5 ? y : x; // 5 to 8 lie on their side
                int alongY = exif >= 5 ? x : y;
                boolean mirrorX = exif == 2 || exif == 3 || exif == 7 || exif == 8;
                boolean mirrorY = exif == 3 || exif == 4 || exif == 6 || exif == 7;
                int from = ((mirrorY ? last - alongY : alongY) * size + (mirrorX ? last - alongX : alongX)) * 3;
                System.arraycopy(rgb, from, turned, (y * size + x) * 3, 3);
            }
        }
        return turned;
    }
}
