// The camera: one frame after the other, as fast as the model runs.

const WHY_NOT = {
  NotAllowedError: "permission denied; allow the camera for this page in the address bar, then try again",
  NotFoundError: "no camera found; plug one in, or drop images",
  NotReadableError: "the camera is used by another program; close that, then try again",
  OverconstrainedError: "no suitable camera found; plug another in, or drop images",
};

/** Start the camera. `frame()` resolves to an ImageBitmap, or to null after `stop()`; it throws if the camera is unplugged. */
export async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("Camera: not available; the page must be served by https or from localhost");
  }
  let stream;
  try {
    const constraints = { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 960 } };
    stream = await navigator.mediaDevices.getUserMedia({ video: constraints });
  } catch (error) {
    throw new Error(`Camera: ${WHY_NOT[error.name] ?? error.message}`);
  }
  let stopped = false;
  const stop = () => {
    stopped = true;
    for (const track of stream.getTracks()) track.stop();
  };
  const video = document.createElement("video");
  video.muted = true;
  video.playsInline = true;
  video.srcObject = stream;
  try {
    await video.play();
  } catch (error) {
    stop();
    throw new Error(`Camera: no image (${error.message}); try again, or drop images`);
  }
  const frame = async () => {
    if (stopped) return null;
    if (stream.getVideoTracks()[0].readyState !== "live") {
      throw new Error("Camera: disconnected; plug it in or allow it again, then press the button");
    }
    return createImageBitmap(video);
  };
  return { frame, stop, stopped: () => stopped };
}
