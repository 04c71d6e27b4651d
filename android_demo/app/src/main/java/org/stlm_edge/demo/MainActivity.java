package org.stlm_edge.demo;

import android.Manifest;
import android.app.Activity;
import android.content.ActivityNotFoundException;
import android.content.Context;
import android.content.Intent;
import android.content.pm.PackageManager;
import android.net.Uri;
import android.os.Bundle;
import android.os.Handler;
import android.os.Looper;
import android.widget.Button;
import android.widget.SeekBar;
import android.widget.TextView;
import java.util.concurrent.Executors;
import org.stlm_edge.core.Judge;
import org.stlm_edge.core.YuvImage;

/** Main screen: verdict, score and heatmap of the camera's frames or of a photo. */
@SuppressWarnings("deprecation") // androidx has newer APIs, but the app uses framework classes only
public final class MainActivity extends Activity implements Judge.Listener<Shot> {
    private static final int PICK = 1;
    private static final int PERMISSION = 2;

    private Judge<Shot> judge; // survives a rotation, and then repeats its last result
    private Camera camera;
    private boolean live;
    private VerdictView image;
    private TextView verdict;
    private TextView details;
    private Button cameraButton;

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        setContentView(R.layout.main);
        image = (VerdictView) findViewById(R.id.image);
        verdict = (TextView) findViewById(R.id.verdict);
        details = (TextView) findViewById(R.id.details);
        cameraButton = (Button) findViewById(R.id.camera);
        cameraButton.setOnClickListener(view -> toggleCamera());
        findViewById(R.id.photo).setOnClickListener(view -> pickPhoto());
        findViewById(R.id.settings).setOnClickListener(view -> show(SettingsActivity.class));
        findViewById(R.id.self_check).setOnClickListener(view -> show(SelfCheckActivity.class));
        SeekBar opacity = (SeekBar) findViewById(R.id.opacity);
        opacity.setOnSeekBarChangeListener(new Slider(value -> image.setOpacity(value / 100f)));
        image.setOpacity(opacity.getProgress() / 100f);
        live = saved != null && saved.getBoolean("live");
        @SuppressWarnings("unchecked")
        Judge<Shot> kept = (Judge<Shot>) getLastNonConfigurationInstance();
        judge = kept == null ? newJudge() : kept;
    }

    private Judge<Shot> newJudge() {
        Handler main = new Handler(Looper.getMainLooper());
        return new Judge<>(new LiteRtEngine(this), Executors.newSingleThreadExecutor(), main::post);
    }

    @Override
    public Object onRetainNonConfigurationInstance() {
        return judge;
    }

    @Override
    protected void onSaveInstanceState(Bundle out) {
        super.onSaveInstanceState(out);
        out.putBoolean("live", live);
    }

    @Override
    protected void onStart() {
        super.onStart();
        judge.listen(this);
        judge.resume();
        if (live) {
            startCamera();
        }
    }

    @Override
    protected void onStop() {
        stopCamera();
        judge.listen(null);
        if (!isChangingConfigurations()) {
            judge.pause(); // frees the model's memory in the background
        }
        super.onStop();
    }

    @Override
    protected void onDestroy() {
        if (!isChangingConfigurations()) {
            judge.shutDown();
        }
        super.onDestroy();
    }

    private void show(Class<? extends Activity> activity) {
        startActivity(new Intent(this, activity));
    }

    private void pickPhoto() {
        live = false;
        stopCamera();
        Intent pick = new Intent(Intent.ACTION_OPEN_DOCUMENT);
        pick.addCategory(Intent.CATEGORY_OPENABLE).setType("image/*");
        try {
            startActivityForResult(pick, PICK);
        } catch (ActivityNotFoundException none) {
            judge.fail(getString(R.string.no_picker));
        }
    }

    @Override
    protected void onActivityResult(int request, int result, Intent data) {
        if (request == PICK && result == RESULT_OK && data != null && data.getData() != null) {
            Uri photo = data.getData();
            Context context = getApplicationContext();
            judge.judge(() -> Shot.read(context, photo));
        }
    }

    private void toggleCamera() {
        if (camera != null) {
            live = false;
            stopCamera();
        } else if (checkSelfPermission(Manifest.permission.CAMERA) == PackageManager.PERMISSION_GRANTED) {
            live = true;
            startCamera();
        } else {
            requestPermissions(new String[] {Manifest.permission.CAMERA}, PERMISSION);
        }
    }

    @Override
    public void onRequestPermissionsResult(int request, String[] permissions, int[] results) {
        if (request == PERMISSION && results.length > 0 && results[0] == PackageManager.PERMISSION_GRANTED) {
            live = true;
            startCamera();
        } else if (request == PERMISSION) {
            judge.fail(getString(R.string.camera_denied));
        }
    }

    private void startCamera() {
        if (camera != null || checkSelfPermission(Manifest.permission.CAMERA) != PackageManager.PERMISSION_GRANTED) {
            return;
        }
        cameraButton.setText(R.string.stop_camera);
        Judge<Shot> judge = this.judge;
        camera = new Camera(getApplicationContext(), getWindowManager().getDefaultDisplay(), new Camera.Listener() {
            @Override
            public boolean wants() {
                return !judge.busy();
            }

            @Override
            public void frame(YuvImage frame, int orientation) {
                judge.judge(() -> Shot.of(frame, orientation));
            }

            @Override
            public void failed(String words) {
                judge.fail(words);
            }
        });
    }

    private void stopCamera() {
        if (camera != null) {
            camera.close();
            camera = null;
        }
        cameraButton.setText(R.string.camera);
    }

    @Override
    public void opened(String running) {
        verdict.setText(R.string.welcome);
        verdict.setTextColor(details.getCurrentTextColor());
        image.show(null);
        details.setText(getString(R.string.ready, running));
    }

    @Override
    public void judged(Judge.Result<Shot> result) {
        image.show(result);
        String word = getString(result.verdict.anomalous ? R.string.anomalous : R.string.normal);
        if (!word.contentEquals(verdict.getText())) { // TalkBack reads the text each time it is set
            verdict.setText(word);
            verdict.setTextColor(getResources().getColor(
                    result.verdict.anomalous ? R.color.anomalous : R.color.normal, getTheme()));
            image.setContentDescription(getString(R.string.image_of, word));
        }
        details.setText(getString(
                R.string.details, result.verdict.score, result.verdict.threshold, Words.milliseconds(result.modelMs),
                Words.milliseconds(result.totalMs), result.running));
    }

    @Override
    public void failed(String words) {
        live = false;
        stopCamera();
        image.show(null);
        image.setContentDescription(getString(R.string.image));
        verdict.setText(R.string.no_verdict);
        verdict.setTextColor(getResources().getColor(R.color.failed, getTheme()));
        details.setText(words);
    }
}
