// The camera: one frame after the other, as fast as they are judged.

const WHY_NOT = {
  NotAllowedError: "the browser or you refused the camera; allow it for this page in the address bar, then try again",
  NotFoundError: "there is no camera; plug one in, or drop images",
  NotReadableError: "the camera is used by another program; close that, then try again",
  OverconstrainedError: "there is no camera that suits; plug another in, or drop images",
};

/** A running camera. `frame()` resolves to an ImageBitmap, or to null after `stop()`, and throws when it is gone. */
export async function openCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("Camera: this page has none here; it needs https, or localhost");
  }
  let stream;
  try {
    const wanted = { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 960 } };
    stream = await navigator.mediaDevices.getUserMedia({ video: wanted });
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
    throw new Error(`Camera: it gives no image (${error.message}); try again, or drop images`);
  }
  const frame = async () => {
    if (stopped) return null;
    if (stream.getVideoTracks()[0].readyState !== "live") {
      throw new Error("Camera: it is gone; plug it in, or allow it again, then press the button once more");
    }
    return createImageBitmap(video);
  };
  return { frame, stop, stopped: () => stopped };
}
