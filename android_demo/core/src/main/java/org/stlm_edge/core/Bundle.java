package org.stlm_edge.core;

import java.io.ByteArrayOutputStream;
import java.io.EOFException;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.OutputStream;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.HashSet;
import java.util.Set;

/**
 * Folder of a bundle: {@code manifest.json}, the model, {@code golden/}.
 *
 * <p>Opening verifies that every file is listed, a regular file inside the folder, and of its listed size and sha256;
 * sizes are checked before contents. Files whose name begins with a dot are ignored; any other unlisted file is
 * refused. This also protects the runtime: LiteRT's library crashes on a truncated model.
 */
public final class Bundle {
    private static final String AGAIN = "; copy the bundle again or export it again";

    /** Source of a bundle's files, such as an app's assets or a folder that the user chose. */
    public interface Source {
        /** Opens a file by its path inside the bundle, with '/' as separator. */
        InputStream open(String path) throws IOException;
    }

    public final File folder;
    public final Manifest manifest;

    private Bundle(File folder, Manifest manifest) {
        this.folder = folder;
        this.manifest = manifest;
    }

    /** Returns the model's file. */
    public File artifact() {
        return new File(folder, manifest.artifact);
    }

    /** Opens and verifies the bundle in a folder. */
    public static Bundle open(File folder) throws IOException {
        if (!folder.isDirectory()) {
            throw new BundleException(folder + ": no such bundle folder; check the path");
        }
        File root = folder.getCanonicalFile();
        Manifest manifest;
        try (InputStream file = new FileInputStream(plain(root, Manifest.NAME))) {
            manifest = Manifest.parse(atMost(file, Manifest.MAX_BYTES, Manifest.NAME));
        }
        Set<String> folders = new HashSet<>();
        for (Manifest.ListedFile file : manifest.files.values()) {
            long size = plain(root, file.path).length();
            if (size != file.bytes) {
                throw new BundleException(
                        file.path + ": " + size + " bytes, the manifest says " + file.bytes + AGAIN);
            }
            for (int end = file.path.lastIndexOf('/'); end > 0; end = file.path.lastIndexOf('/', end - 1)) {
                folders.add(file.path.substring(0, end));
            }
        }
        refuseUnlisted(root, "", manifest, folders);
        for (String path : folders) {
            refuseUnlisted(root, path + "/", manifest, folders);
        }
        for (Manifest.ListedFile file : manifest.files.values()) {
            try (InputStream content = new FileInputStream(new File(root, file.path))) {
                copy(content, null, file);
            }
        }
        return new Bundle(root, manifest);
    }

    /**
     * Copies a bundle into {@code folder} and opens it there. Copies the files that the manifest lists, and verifies
     * them. An older bundle in that folder remains until the new one is complete.
     */
    public static Bundle install(Source source, File folder) throws IOException {
        byte[] text;
        try (InputStream file = opened(source, Manifest.NAME)) {
            text = atMost(file, Manifest.MAX_BYTES, Manifest.NAME);
        }
        Manifest manifest = Manifest.parse(text);
        long needed = 0;
        for (Manifest.ListedFile file : manifest.files.values()) {
            needed += file.bytes;
        }
        File fresh = new File(folder.getPath() + ".new");
        remove(fresh);
        if (!fresh.mkdirs() || fresh.getUsableSpace() < needed) {
            remove(fresh);
            throw new BundleException("no room for a bundle of " + needed / 1_000_000 + " MB; free some storage");
        }
        try {
            for (Manifest.ListedFile file : manifest.files.values()) {
                File place = new File(fresh, file.path);
                if (!place.getParentFile().isDirectory() && !place.getParentFile().mkdirs()) {
                    throw new IOException(file.path + ": its folder cannot be made");
                }
                try (InputStream from = opened(source, file.path); OutputStream to = new FileOutputStream(place)) {
                    copy(from, to, file);
                }
            }
            try (OutputStream to = new FileOutputStream(new File(fresh, Manifest.NAME))) {
                to.write(text);
            }
            open(fresh);
            remove(folder);
            if (!fresh.renameTo(folder)) {
                throw new IOException(folder + ": cannot be written");
            }
        } finally {
            remove(fresh);
        }
        return new Bundle(folder.getCanonicalFile(), manifest);
    }

    /** Returns the verified content of a listed file; meant for golden files, which are small. */
    byte[] read(String path) throws IOException {
        Manifest.ListedFile file = manifest.files.get(path);
        ByteArrayOutputStream content = new ByteArrayOutputStream((int) Math.min(file.bytes, 1 << 16));
        try (InputStream from = new FileInputStream(plain(folder, path))) {
            copy(from, content, file);
        }
        return content.toByteArray();
    }

    private static InputStream opened(Source source, String path) throws IOException {
        try {
            return source.open(path);
        } catch (FileNotFoundException error) {
            throw new BundleException(path + ": missing" + AGAIN);
        }
    }

    private static void copy(InputStream from, OutputStream to, Manifest.ListedFile file) throws IOException {
        MessageDigest digest = sha256();
        byte[] chunk = new byte[1 << 16];
        long left = file.bytes;
        for (int count; (count = from.read(chunk, 0, (int) Math.min(chunk.length, left + 1))) >= 0; ) {
            left -= count;
            if (left < 0) {
                throw new BundleException(
                        file.path + ": larger than the " + file.bytes + " bytes of the manifest" + AGAIN);
            }
            digest.update(chunk, 0, count);
            if (to != null) {
                to.write(chunk, 0, count);
            }
        }
        StringBuilder found = new StringBuilder();
        for (byte value : digest.digest()) {
            found.append(Character.forDigit((value >> 4) & 15, 16)).append(Character.forDigit(value & 15, 16));
        }
        if (!found.toString().equals(file.sha256)) {
            throw new BundleException(
                    file.path + ": its content has changed (sha256 differs from the manifest)" + AGAIN);
        }
    }

    private static byte[] atMost(InputStream file, int most, String name) throws IOException {
        ByteArrayOutputStream content = new ByteArrayOutputStream();
        byte[] chunk = new byte[1 << 13];
        for (int count; (count = file.read(chunk)) >= 0; ) {
            content.write(chunk, 0, count);
            if (content.size() > most) {
                throw new BundleException(name + ": larger than " + most + " bytes, the limit for this file");
            }
        }
        if (content.size() == 0) {
            throw new EOFException(name + ": the file is empty");
        }
        return content.toByteArray();
    }

    /** Returns a regular file, reached without any link. */
    private static File plain(File root, String path) throws IOException {
        File file = new File(root, path);
        if (!file.exists()) {
            throw new BundleException(path + ": missing" + AGAIN);
        }
        if (!file.isFile() || !file.getCanonicalFile().equals(file)) {
            throw new BundleException(path + ": not a plain file; a bundle holds no links" + AGAIN);
        }
        return file;
    }

    private static void refuseUnlisted(File root, String inside, Manifest manifest, Set<String> folders)
            throws BundleException {
        String[] names = new File(root, inside).list();
        for (String name : names == null ? new String[0] : names) {
            String path = inside + name;
            boolean known = manifest.files.containsKey(path) || folders.contains(path) || path.equals(Manifest.NAME);
            if (!known && !name.startsWith(".")) {
                throw new BundleException(path + ": not listed in the manifest; remove it or" + AGAIN.substring(1));
            }
        }
    }

    private static void remove(File place) {
        File[] inside = place.listFiles();
        for (File file : inside == null ? new File[0] : inside) {
            remove(file);
        }
        place.delete();
    }

    private static MessageDigest sha256() {
        try {
            return MessageDigest.getInstance("SHA-256");
        } catch (NoSuchAlgorithmException error) {
            throw new AssertionError("every Java has SHA-256", error);
        }
    }
}
