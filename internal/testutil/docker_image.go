package testutil

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Image is the name of the only image that an engine of NewDocker has:
// busybox, and as its program one that waits for SIGTERM.
const Image = "box"

// busybox is static, so that it is all that a container needs.
const busybox = "/usr/bin/busybox"

// importImage makes the image, without any registry.
func (d *Docker) importImage(t testing.TB) {
	t.Helper()
	archive := filepath.Join(d.directory, "image.tar")
	if err := writeImage(archive, strings.Fields(d.Host.Run(t, busybox, "--list"))); err != nil {
		t.Fatalf("write an image: %v", err)
	}
	d.Run(t, "import", "--change", `CMD ["sh", "-c", "trap exit TERM; sleep infinity & wait"]`, archive, Image)
}

func writeImage(path string, applets []string) (err error) {
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	w := tar.NewWriter(file)
	defer func() { err = errors.Join(err, w.Close(), file.Close()) }()
	if err := w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))}); err != nil {
		return err
	}
	if _, err := w.Write(program); err != nil {
		return err
	}
	for _, applet := range applets {
		if applet == "busybox" {
			continue
		}
		if err := w.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox"}); err != nil {
			return err
		}
	}
	return nil
}
