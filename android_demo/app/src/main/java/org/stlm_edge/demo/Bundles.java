package org.stlm_edge.demo;

import android.content.ContentResolver;
import android.content.Context;
import android.database.Cursor;
import android.net.Uri;
import android.provider.DocumentsContract;
import android.provider.DocumentsContract.Document;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;
import java.util.Arrays;
import java.util.HashMap;
import java.util.Map;
import org.stlm_edge.core.Bundle;
import org.stlm_edge.core.BundleException;
import org.stlm_edge.core.Manifest;

/**
 * Sources of bundles: the app's assets, a folder that the user chose, a folder that adb pushed. The first two are
 * copied into the app's own files, because LiteRT reads a model by its path.
 */
final class Bundles {
    private static final String ASSETS = "bundle/";
    private static final String NAME = "[A-Za-z0-9_][A-Za-z0-9._-]{0,99}";

    private Bundles() {}

    /** Opens the bundle that the settings name. */
    static Bundle open(Context context, Settings settings) throws IOException {
        return settings.picked() ? Bundle.open(picked(context)) : embedded(context);
    }

    /** Opens the bundle that {@code am start} names: pushed to files/bundles/NAME, or "embedded". */
    static Bundle named(Context context, String name) throws IOException {
        if (name == null || name.equals("embedded")) {
            return embedded(context);
        }
        File files = context.getExternalFilesDir("bundles");
        if (files == null || !name.matches(NAME)) {
            throw new BundleException(context.getString(R.string.bad_bundle_name));
        }
        return Bundle.open(new File(files, name));
    }

    /** Returns a name from outside the app in a form that is safe to show. */
    static String plain(String name) {
        return name.substring(0, Math.min(name.length(), 100)).replaceAll("[^A-Za-z0-9._-]", "?");
    }

    /** Copies the chosen folder; the previous bundle remains until the new one is complete. */
    static Bundle install(Context context, Uri folder) throws IOException {
        Documents documents = new Documents(context.getContentResolver(), folder);
        return Bundle.install(documents, picked(context));
    }

    private static File picked(Context context) {
        return new File(context.getFilesDir(), "picked");
    }

    private static Bundle embedded(Context context) throws IOException {
        File folder = new File(context.getFilesDir(), "embedded");
        Bundle.Source assets = path -> context.getAssets().open(ASSETS + path);
        if (folder.isDirectory() && sameManifest(assets, folder)) {
            try {
                return Bundle.open(folder);
            } catch (BundleException damaged) {
                // The copy is damaged: copy the intact assets again below.
            }
        }
        try {
            return Bundle.install(assets, folder);
        } catch (FileNotFoundException | BundleException problem) {
            String[] inside = context.getAssets().list("bundle");
            if (inside == null || inside.length == 0) {
                throw new BundleException(context.getString(R.string.no_embedded_bundle));
            }
            throw problem;
        }
    }

    private static boolean sameManifest(Bundle.Source source, File folder) {
        try (InputStream one = source.open(Manifest.NAME);
                InputStream other = new FileInputStream(new File(folder, Manifest.NAME))) {
            byte[] a = new byte[1 << 13];
            byte[] b = new byte[1 << 13];
            for (int count = fill(one, a); count > 0; count = fill(one, a)) {
                if (fill(other, b) != count || !Arrays.equals(a, b)) {
                    return false;
                }
            }
            return other.read() < 0;
        } catch (IOException missing) {
            return false;
        }
    }

    private static int fill(InputStream from, byte[] chunk) throws IOException {
        int filled = 0;
        for (int count; filled < chunk.length && (count = from.read(chunk, filled, chunk.length - filled)) > 0; ) {
            filled += count;
        }
        return filled;
    }

    /** Files in a folder chosen with the Storage Access Framework. */
    private static final class Documents implements Bundle.Source {
        private final ContentResolver resolver;
        private final Uri tree;
        private final Map<String, Map<String, String>> folders = new HashMap<>();

        Documents(ContentResolver resolver, Uri tree) {
            this.resolver = resolver;
            this.tree = tree;
        }

        @Override
        public InputStream open(String path) throws IOException {
            String id = DocumentsContract.getTreeDocumentId(tree);
            for (String part : path.split("/")) {
                id = children(id).get(part);
                if (id == null) {
                    throw new FileNotFoundException(path);
                }
            }
            try {
                InputStream file = resolver.openInputStream(DocumentsContract.buildDocumentUriUsingTree(tree, id));
                if (file != null) {
                    return file;
                }
            } catch (RuntimeException refused) {
                throw new IOException(path + ": " + refused.getMessage());
            }
            throw new FileNotFoundException(path);
        }

        /** Maps names to document ids. */
        private Map<String, String> children(String folder) throws IOException {
            Map<String, String> found = folders.get(folder);
            if (found != null) {
                return found;
            }
            found = new HashMap<>();
            Uri uri = DocumentsContract.buildChildDocumentsUriUsingTree(tree, folder);
            String[] columns = {Document.COLUMN_DISPLAY_NAME, Document.COLUMN_DOCUMENT_ID};
            try (Cursor rows = resolver.query(uri, columns, null, null, null)) {
                while (rows != null && rows.moveToNext()) {
                    found.put(rows.getString(0), rows.getString(1));
                }
            } catch (RuntimeException refused) {
                throw new IOException(refused.getMessage());
            }
            folders.put(folder, found);
            return found;
        }
    }
}
