package org.stlm_edge.core;

/** EXIF orientation, applied after the resize: turning the small square is cheap, a photo would need a copy. */
public final class Orientation {
    private Orientation() {}

    /**
     * Returns the RGB square turned upright. {@code exif} is the tag Orientation (1 to 8; anything else means upright).
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

    /** Returns whether width and height are swapped. */
    public static boolean isSideways(int exif) {
        return exif >= 5 && exif <= 8;
    }

    /** Returns whether the image is to be mirrored left to right, before it is turned by {@link #degrees}. */
    public static boolean isMirrored(int exif) {
        return exif == 2 || exif == 4 || exif == 5 || exif == 7;
    }

    /** Returns how far to turn the image clockwise. */
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
     * Returns the EXIF orientation of a camera's frame. All angles are multiples of 90 degrees.
     *
     * @param mounted clockwise angle that turns the frame upright in the device's natural orientation
     * @param front whether the camera faces the user, and so turns against the display
     * @param display angle of the display from its natural orientation
     */
    public static int ofCamera(int mounted, boolean front, int display) {
        int degrees = (mounted + (front ? display : 360 - display)) % 360;
        return degrees == 90 ? 6 : degrees == 180 ? 3 : degrees == 270 ? 8 : 1;
    }
}
