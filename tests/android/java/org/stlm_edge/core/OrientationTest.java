package org.stlm_edge.core;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;

import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;

/** Orientation of images and camera frames. */
class OrientationTest {
    /** The image shown, turned by mirror and angle, agrees with the network's input, turned by {@code upright}. */
    @ParameterizedTest
    @ValueSource(ints = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9})
    void mirroringAndTurningIsUpright(int exif) {
        int size = 3;
        byte[] square = new byte[size * size * 3];
        for (int i = 0; i < square.length; i++) {
            square[i] = (byte) i;
        }
        byte[] turned = new byte[square.length];
        for (int y = 0; y < size; y++) {
            for (int x = 0; x < size; x++) {
                int toX = Orientation.isMirrored(exif) ? size - 1 - x : x;
                int toY = y;
                for (int quarter = 0; quarter < Orientation.degrees(exif) / 90; quarter++) { // clockwise
                    int before = toX;
                    toX = size - 1 - toY;
                    toY = before;
                }
                System.arraycopy(square, (y * size + x) * 3, turned, (toY * size + toX) * 3, 3);
            }
        }
        assertArrayEquals(Orientation.upright(square, size, exif), turned);
        assertEquals(Orientation.degrees(exif) % 180 != 0, Orientation.isSideways(exif));
    }

    /**
     * A phone's back camera is mounted at 90°, its front one at 270°. Held upright, frames are turned by that angle.
     * Turned to its left side (display at 90), both cameras' frames are upright already; upside down, both are opposite
     * to how they are when the phone is upright.
     */
    @ParameterizedTest
    @CsvSource({
        "90,false,0,90", "90,false,90,0", "90,false,180,270", "90,false,270,180", //
        "270,true,0,270", "270,true,90,0", "270,true,180,90", "270,true,270,180", //
        "0,false,0,0", "270,false,90,180", "90,true,270,0"
    })
    void aCamerasFrameIsTurnedByHowItIsMountedAndHeld(int mounted, boolean front, int display, int degrees) {
        assertEquals(degrees, Orientation.degrees(Orientation.ofCamera(mounted, front, display)));
    }
}
