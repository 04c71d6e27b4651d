package org.stlm_edge.demo;

import android.content.Context;
import android.graphics.ImageFormat;
import android.hardware.camera2.CameraAccessException;
import android.hardware.camera2.CameraCaptureSession;
import android.hardware.camera2.CameraCharacteristics;
import android.hardware.camera2.CameraDevice;
import android.hardware.camera2.CameraManager;
import android.hardware.camera2.CaptureRequest;
import android.hardware.camera2.params.StreamConfigurationMap;
import android.media.Image;
import android.media.ImageReader;
import android.os.Handler;
import android.os.HandlerThread;
import android.util.Size;
import android.view.Display;
import android.view.Surface;
import java.nio.ByteBuffer;
import java.util.Collections;
import org.stlm_edge.core.Orientation;
import org.stlm_edge.core.YuvImage;

/** Source of Camera2's frames, each an image with its EXIF orientation. */
final class Camera {
    /** Called on the camera's thread. */
    interface Listener {
        /** Returns whether a frame is wanted now; otherwise none is copied. */
        boolean wants();

        void frame(YuvImage image, int orientation);

        /** Reports that the camera has closed, with a message for the user. */
        void failed(String words);
    }

    private static final int WIDEST = 1280;

    private final Context context;
    private final Listener listener;
    private final Display display;
    private final HandlerThread thread = new HandlerThread("camera");
    private final Handler handler;
    private CameraDevice device; // used on the camera's thread only
    private ImageReader reader;
    private boolean closed;
    private int mounted;
    private boolean front;

    Camera(Context context, Display display, Listener listener) {
        this.context = context;
        this.display = display;
        this.listener = listener;
        thread.start();
        handler = new Handler(thread.getLooper());
        handler.post(this::open);
    }

    void close() {
        handler.post(() -> {
            release();
            thread.quitSafely();
        });
    }

    private void open() {
        try {
            CameraManager manager = (CameraManager) context.getSystemService(Context.CAMERA_SERVICE);
            String chosen = null;
            for (String id : manager.getCameraIdList()) {
                Integer facing = manager.getCameraCharacteristics(id).get(CameraCharacteristics.LENS_FACING);
                if (chosen == null || (facing != null && facing == CameraCharacteristics.LENS_FACING_BACK)) {
                    chosen = id;
                    if (facing != null && facing == CameraCharacteristics.LENS_FACING_BACK) {
                        break;
                    }
                }
            }
            if (chosen == null) {
                fail(context.getString(R.string.no_camera));
                return;
            }
            CameraCharacteristics facts = manager.getCameraCharacteristics(chosen);
            Integer degrees = facts.get(CameraCharacteristics.SENSOR_ORIENTATION);
            Integer facing = facts.get(CameraCharacteristics.LENS_FACING);
            mounted = degrees == null ? 0 : degrees;
            front = facing != null && facing == CameraCharacteristics.LENS_FACING_FRONT;
            Size size = size(facts);
            reader = ImageReader.newInstance(size.getWidth(), size.getHeight(), ImageFormat.YUV_420_888, 2);
            reader.setOnImageAvailableListener(this::read, handler);
            manager.openCamera(chosen, new Opened(), handler);
        } catch (CameraAccessException | RuntimeException refused) {
            fail(context.getString(R.string.camera_failed, Words.of(context, refused)));
        }
    }

    /** Returns the frame's orientation, read each time: Android sends no event when a device is turned upside down. */
    private int displayDegrees() {
        switch (display.getRotation()) {
            case Surface.ROTATION_90:
                return 90;
            case Surface.ROTATION_180:
                return 180;
            case Surface.ROTATION_270:
                return 270;
            default:
                return 0;
        }
    }

    private static Size size(CameraCharacteristics facts) {
        StreamConfigurationMap streams = facts.get(CameraCharacteristics.SCALER_STREAM_CONFIGURATION_MAP);
        Size[] sizes = streams == null ? null : streams.getOutputSizes(ImageFormat.YUV_420_888);
        Size best = new Size(640, 480); // supported by every camera
        for (Size size : sizes == null ? new Size[0] : sizes) {
            if (size.getWidth() <= WIDEST && size.getWidth() > best.getWidth()) {
                best = size;
            }
        }
        return best;
    }

    private final class Opened extends CameraDevice.StateCallback {
        @Override
        public void onOpened(CameraDevice opened) {
            if (closed) {
                opened.close();
                return;
            }
            device = opened;
            try {
                CaptureRequest.Builder request = device.createCaptureRequest(CameraDevice.TEMPLATE_PREVIEW);
                request.addTarget(reader.getSurface());
                request.set(CaptureRequest.CONTROL_AF_MODE, CaptureRequest.CONTROL_AF_MODE_CONTINUOUS_PICTURE);
                device.createCaptureSession(
                        Collections.singletonList(reader.getSurface()), new Started(request.build()), handler);
            } catch (CameraAccessException | RuntimeException refused) {
                fail(context.getString(R.string.camera_failed, Words.of(context, refused)));
            }
        }

        @Override
        public void onDisconnected(CameraDevice lost) {
            lost.close();
            fail(context.getString(R.string.camera_taken));
        }

        @Override
        public void onError(CameraDevice broken, int error) {
            broken.close();
            fail(context.getString(R.string.camera_failed, String.valueOf(error)));
        }
    }

    private final class Started extends CameraCaptureSession.StateCallback {
        private final CaptureRequest request;

        Started(CaptureRequest request) {
            this.request = request;
        }

        @Override
        public void onConfigured(CameraCaptureSession session) {
            if (closed) {
                return;
            }
            try {
                session.setRepeatingRequest(request, null, handler);
            } catch (CameraAccessException | RuntimeException refused) {
                fail(context.getString(R.string.camera_failed, Words.of(context, refused)));
            }
        }

        @Override
        public void onConfigureFailed(CameraCaptureSession session) {
            fail(context.getString(R.string.camera_failed, "configuration"));
        }
    }

    private void read(ImageReader from) {
        try (Image raw = from.acquireLatestImage()) { // an image that is not closed stalls the source
            if (raw == null || closed || !listener.wants()) {
                return;
            }
            Image.Plane[] planes = raw.getPlanes();
            YuvImage image = new YuvImage(
                    raw.getWidth(), raw.getHeight(),
                    bytes(planes[0]), planes[0].getRowStride(),
                    bytes(planes[1]), bytes(planes[2]), planes[1].getRowStride(), planes[1].getPixelStride());
            listener.frame(image, Orientation.ofCamera(mounted, front, displayDegrees()));
        } catch (IllegalStateException gone) {
            // The reader was closed in the meantime.
        } catch (OutOfMemoryError full) {
            fail(Words.of(context, full));
        }
    }

    private static byte[] bytes(Image.Plane plane) {
        ByteBuffer buffer = plane.getBuffer();
        byte[] copied = new byte[buffer.remaining()];
        buffer.get(copied);
        return copied;
    }

    private void fail(String words) {
        if (!closed) {
            release();
            listener.failed(words);
        }
    }

    private void release() {
        closed = true;
        if (device != null) {
            device.close();
            device = null;
        }
        if (reader != null) {
            reader.close();
            reader = null;
        }
    }
}
