package org.stlm_edge.demo;

import android.app.Activity;
import android.app.ActivityManager;
import android.content.Context;
import android.content.Intent;
import android.content.IntentFilter;
import android.content.pm.PackageManager;
import android.os.BatteryManager;
import android.os.Build;
import android.os.Bundle;
import android.os.PowerManager;
import android.view.View;
import android.view.WindowManager;
import android.widget.ProgressBar;
import android.widget.TextView;
import java.io.BufferedReader;
import java.io.File;
import java.io.FileReader;
import java.io.IOException;
import java.util.Collections;
import java.util.Locale;
import java.util.Map;
import org.stlm_edge.core.BenchFile;
import org.stlm_edge.core.Latency;
import org.stlm_edge.core.Parity;
import org.stlm_edge.core.SelfCheck;
import org.stlm_edge.core.Vitals;

/**
 * Compares this phone's results with the trained model's, and measures latency. Started by its button, or by
 *
 * <pre>am start -n org.stlm_edge.demo/.SelfCheckActivity --es bundle NAME --ei queries N --es delegate cpu|gpu</pre>
 *
 * with the optional extras {@code --ei threads N --ei seconds N --ez even_if_wrong true}. NAME is
 * a folder in the app's external files/bundles, or "embedded". The result is bench.json in the app's
 * external files; an old one is deleted first.
 */
public final class SelfCheckActivity extends Activity {
    private static final int QUERIES = 128;
    private static final int MAX_QUERIES = 100_000;
    private static final int MAX_SECONDS = 3600;
    private static final File STATUS = new File("/proc/self/status");
    private static final File GOVERNOR = new File("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");

    private Thread worker;
    private TextView headline;
    private TextView table;
    private ProgressBar progress;

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        setContentView(R.layout.self_check);
        getWindow().addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON);
        headline = (TextView) findViewById(R.id.headline);
        table = (TextView) findViewById(R.id.table);
        progress = (ProgressBar) findViewById(R.id.progress);
        start(getIntent());
    }

    @Override
    protected void onNewIntent(Intent intent) {
        super.onNewIntent(intent);
        stop();
        start(intent);
    }

    @Override
    protected void onStop() {
        stop(); // measurements in the background would not be representative
        super.onStop();
    }

    private void stop() {
        if (worker != null) {
            worker.interrupt();
        }
    }

    private void start(Intent intent) {
        progress.setVisibility(View.VISIBLE);
        Thread before = worker;
        worker = new Thread(() -> {
            if (before != null) {
                try {
                    before.join();
                } catch (InterruptedException stopped) {
                    return;
                }
            }
            run(intent);
        }, "self-check");
        worker.start();
    }

    private void run(Intent intent) {
        Context context = getApplicationContext();
        Settings settings = new Settings(context);
        String name = intent.getStringExtra("bundle");
        String requested = intent.getStringExtra("delegate");
        boolean gpu = requested == null ? settings.gpu() : requested.equals("gpu");
        int queries = within(1, intent.getIntExtra("queries", QUERIES), MAX_QUERIES);
        int seconds = within(0, intent.getIntExtra("seconds", 0), MAX_SECONDS);
        int threads = within(1, intent.getIntExtra("threads", settings.threads()), Settings.cores());
        SelfCheck.Effort effort =
                new SelfCheck.Effort(queries, seconds, intent.getBooleanExtra("even_if_wrong", false));
        BenchFile.Row row = new BenchFile.Row();
        row.bundle = name == null ? settings.picked() ? "picked" : "embedded" : Bundles.plain(name);
        row.name = row.bundle + (gpu ? " gpu" : " cpu");
        row.runtime = gpu ? "litert gpu" : "litert cpu (XNNPACK)";
        row.threads = gpu ? 1 : threads;
        File folder = context.getExternalFilesDir(null);
        File file = folder == null ? null : new File(folder, BenchFile.NAME);
        BenchFile.Device device = device(context);
        device.celsiusBefore = celsius(context);
        String problem = null;
        if (file != null && file.exists() && !file.delete()) {
            problem = getString(R.string.no_storage);
        }
        try {
            if (requested != null && !requested.equals("gpu") && !requested.equals("cpu")) {
                throw new IOException(getString(R.string.bad_delegate));
            }
            check(context, row, name, gpu, effort);
        } catch (OutOfMemoryError full) {
            row.failure = getString(R.string.out_of_memory);
        } catch (InterruptedException stopped) {
            row.failure = getString(R.string.stopped);
        } catch (Exception | LinkageError refused) {
            row.failure = gpu
                    ? getString(R.string.gpu_refused_here, Words.of(context, refused))
                    : Words.of(context, refused);
        }
        try {
            if (file == null) {
                throw new IOException(getString(R.string.no_storage));
            }
            String command = "self-check --bundle " + row.bundle + " --queries " + queries
                    + (seconds > 0 ? " --seconds " + seconds : "") + " --threads " + row.threads
                    + (effort.evenIfWrong ? " --even-if-wrong" : "") + " --delegate " + (gpu ? "gpu" : "cpu");
            device.celsiusAfter = celsius(context);
            BenchFile.write(file, version(context), command, device, row);
        } catch (IOException full) {
            problem = Words.of(context, full);
        }
        String words = problem;
        runOnUiThread(() -> show(row, words));
    }

    private void check(Context context, BenchFile.Row row, String name, boolean gpu, SelfCheck.Effort effort)
            throws Exception {
        Double before = Vitals.peakMemoryMb(STATUS);
        long started = System.nanoTime();
        org.stlm_edge.core.Bundle bundle = name == null
                ? Bundles.open(context, new Settings(context))
                : Bundles.named(context, name);
        row.manifest = bundle.manifest;
        try (LiteRtModel model = new LiteRtModel(context, bundle, gpu, row.threads)) {
            row.loadMs = (System.nanoTime() - started) / 1e6;
            row.check = SelfCheck.run(bundle, model, BitmapImage::decode, effort, new PhoneMeters(context), this::at);
            Double peak = Vitals.peakMemoryMb(STATUS);
            // A peak from before the check is not the model's.
            row.peakMemoryMb = before == null || peak == null || peak <= before ? null : peak;
        }
    }

    private void at(String what, int done, int of) {
        runOnUiThread(() -> {
            progress.setMax(of);
            progress.setProgress(done);
            headline.setText(getString(what.equals("parity") ? R.string.checking : R.string.timing, done, of));
        });
    }

    private void show(BenchFile.Row row, String problem) {
        progress.setVisibility(View.GONE);
        headline.setText(problem == null ? BenchFile.headline(row) : problem);
        StringBuilder text = new StringBuilder();
        if (row.check != null) {
            for (Parity.Row golden : row.check.parity.rows) {
                text.append(String.format(Locale.ROOT, "%s: %s, score %.4f (trained %.4f), map ±%.1e\n", golden.name,
                        golden.verdict, golden.score, golden.expectedScore, golden.maxAbsDiff));
            }
            if (row.check.milliseconds.length > 0) {
                Latency latency = new Latency(row.check.milliseconds);
                text.append('\n').append(getString(R.string.latency, Words.milliseconds(latency.p50),
                        Words.milliseconds(latency.p90), Words.milliseconds(latency.p99),
                        row.check.milliseconds.length));
            }
        }
        table.setText(text);
    }

    /** Returns the battery's temperature, the only one that every Android version reports. */
    private static Map<String, Double> celsius(Context context) {
        Intent battery = context.registerReceiver(null, new IntentFilter(Intent.ACTION_BATTERY_CHANGED));
        int tenths = battery == null ? 0 : battery.getIntExtra(BatteryManager.EXTRA_TEMPERATURE, 0);
        return tenths == 0 ? Collections.emptyMap() : Collections.singletonMap("battery", tenths / 10.0);
    }

    private static BenchFile.Device device(Context context) {
        BenchFile.Device device = new BenchFile.Device();
        device.device = Build.MANUFACTURER + " " + Build.MODEL;
        device.processor = Build.HARDWARE;
        device.architecture = Build.SUPPORTED_ABIS.length > 0 ? Build.SUPPORTED_ABIS[0] : "unknown";
        device.cores = Settings.cores();
        ActivityManager.MemoryInfo memory = new ActivityManager.MemoryInfo();
        ((ActivityManager) context.getSystemService(ACTIVITY_SERVICE)).getMemoryInfo(memory);
        device.memoryGb = Math.round(memory.totalMem / 1e8) / 10.0;
        device.system = "Android " + Build.VERSION.RELEASE + " (API " + Build.VERSION.SDK_INT + ")";
        device.kernel = "Linux " + System.getProperty("os.version");
        device.language = "Java, Android Runtime";
        device.packages = Collections.singletonMap("com.google.ai.edge.litert", context.getString(R.string.litert));
        device.governor = governor();
        PowerManager power = (PowerManager) context.getSystemService(POWER_SERVICE);
        device.powerMode = power.isPowerSaveMode() ? "battery saver" : "normal";
        return device;
    }

    /** Returns the CPU governor; null where Android hides it from apps, as many phones do. */
    private static String governor() {
        try (BufferedReader file = new BufferedReader(new FileReader(GOVERNOR))) {
            return file.readLine();
        } catch (IOException closed) {
            return null;
        }
    }

    private static String version(Context context) throws IOException {
        try {
            return context.getPackageManager().getPackageInfo(context.getPackageName(), 0).versionName;
        } catch (PackageManager.NameNotFoundException gone) {
            throw new IOException(gone);
        }
    }

    private static int within(int least, int value, int most) {
        return Math.max(least, Math.min(value, most));
    }
}
