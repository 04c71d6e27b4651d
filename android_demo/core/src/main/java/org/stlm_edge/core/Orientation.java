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
                int alongX = isSideways(exif) ? y : x;
                int alongY = isSideways(exif) ? x : y;
                boolean mirrorX = exif == 2 || exif == 3 || exif == 7 || exif == 8;
                boolean mirrorY = exif == 3 || exif == 4 || exif == 6 || exif == 7;
                int from = ((mirrorY ? last - alongY : alongY) * size + (mirrorX ? last - alongX : alongX)) * 3;
                System.arraycopy(rgb, from, turned, (y * size + x) * 3, 3);
            }
        }
        return turned;
    }

    /** Width and height change places. */
    public static boolean isSideways(int exif) {
        return exif >= 5 && exif <= 8;
    }

    /** Upright is it mirrored left to right first, and then turned by {@link #degrees}. */
    public static boolean isMirrored(int exif) {
        return exif == 2 || exif == 4 || exif == 5 || exif == 7;
    }

    /** Clockwise. */
    public static int degrees(int exif) {
        switch (exif) {
            case 3:
            case 4:
                return 180;
            case 6:
            case 7:
                return 90;
            case 5:
            case 8:
                return 270;
            default:
                return 0;
        }
    }

    /**
     * Of a camera's frame. All in degrees, a multiple of 90.
     *
     * @param mounted how far clockwise its frame is to be turned while the device is held as it naturally is
     * @param front it looks at the user, and so turns against the display
     * @param display how far the display is turned from its natural position
     */
    public static int ofCamera(int mounted, boolean front, int display) {
        int degrees = (mounted + (front ? display : 360 - display)) % 360;
        return degrees == 90 ? 6 : degrees == 180 ? 3 : degrees == 270 ? 8 : 1;
    }
}
