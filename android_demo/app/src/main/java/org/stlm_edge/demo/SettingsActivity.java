package org.stlm_edge.demo;

import android.app.Activity;
import android.content.ActivityNotFoundException;
import android.content.Context;
import android.content.Intent;
import android.net.Uri;
import android.os.Bundle;
import android.os.Handler;
import android.os.Looper;
import android.widget.EditText;
import android.widget.RadioGroup;
import android.widget.SeekBar;
import android.widget.TextView;
import android.widget.Toast;
import java.io.IOException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import org.stlm_edge.core.ThresholdField;

/** Settings: threads, delegate, decision threshold and bundle. They apply when the main screen is resumed. */
public final class SettingsActivity extends Activity {
    private static final int PICK = 1;
    private static final ExecutorService WORKER = Executors.newSingleThreadExecutor(); // one bundle at a time

    private final Handler main = new Handler(Looper.getMainLooper());
    private Settings settings;
    private TextView status;
    private EditText threshold;
    private ThresholdField field;

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        setContentView(R.layout.settings);
        settings = new Settings(this);
        status = (TextView) findViewById(R.id.status);

        TextView threadsLabel = (TextView) findViewById(R.id.threads_label);
        SeekBar threads = (SeekBar) findViewById(R.id.threads);
        threads.setMax(Settings.cores() - 1);
        threads.setProgress(settings.threads() - 1);
        threadsLabel.setText(getString(R.string.threads, settings.threads()));
        threads.setOnSeekBarChangeListener(new Slider(value -> {
            settings.setThreads(value + 1);
            threadsLabel.setText(getString(R.string.threads, value + 1));
        }));

        RadioGroup delegate = (RadioGroup) findViewById(R.id.delegate);
        delegate.check(settings.gpu() ? R.id.gpu : R.id.cpu);
        delegate.setOnCheckedChangeListener((group, id) -> settings.setGpu(id == R.id.gpu));

        threshold = (EditText) findViewById(R.id.threshold);
        field = new ThresholdField(settings);
        threshold.setText(field.show());
        findViewById(R.id.pick).setOnClickListener(view -> pick());
        findViewById(R.id.embedded).setOnClickListener(view -> {
            settings.setPicked(false);
            threshold.setText(field.show());
            showBundle();
        });
        showBundle();
    }

    @Override
    protected void onPause() {
        try {
            field.left(threshold.getText().toString());
        } catch (IllegalArgumentException refused) {
            Toast.makeText(this, R.string.bad_threshold, Toast.LENGTH_LONG).show();
        }
        super.onPause();
    }

    private void pick() {
        try {
            startActivityForResult(new Intent(Intent.ACTION_OPEN_DOCUMENT_TREE), PICK);
        } catch (ActivityNotFoundException none) {
            status.setText(R.string.no_picker);
        }
    }

    @Override
    protected void onActivityResult(int request, int result, Intent data) {
        if (request != PICK || result != RESULT_OK || data == null || data.getData() == null) {
            return;
        }
        Uri folder = data.getData();
        Context context = getApplicationContext();
        status.setText(R.string.copying);
        WORKER.execute(() -> {
            try {
                Bundles.install(context, folder);
                new Settings(context).setPicked(true);
                main.post(() -> {
                    threshold.setText(field.show());
                    showBundle();
                });
            } catch (IOException | RuntimeException refused) {
                main.post(() -> status.setText(Words.of(context, refused)));
            }
        });
    }

    /** Opens the bundle, and shows its name and size. */
    private void showBundle() {
        Context context = getApplicationContext();
        WORKER.execute(() -> {
            Settings chosen = new Settings(context);
            String words;
            String own = "";
            try {
                org.stlm_edge.core.Manifest manifest = Bundles.open(context, chosen).manifest;
                int which = chosen.picked() ? R.string.picked_bundle : R.string.embedded_bundle;
                words = context.getString(R.string.bundle_is, context.getString(which), manifest.precision,
                        manifest.size);
                own = ThresholdField.text(manifest.decisionThreshold.value);
            } catch (IOException | RuntimeException refused) {
                words = Words.of(context, refused);
            }
            String shown = words;
            String hint = own;
            main.post(() -> {
                status.setText(shown);
                threshold.setHint(hint);
            });
        });
    }
}
