package testutil

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// BuildFromHistory builds ebpnet as it was at a commit, and gives the path of
// the binary.
func BuildFromHistory(t testing.TB, commit string) string {
	t.Helper()
	top := strings.TrimSpace(string(output(t, "", "go", "list", "-m", "-f", "{{.Dir}}")))
	git := func(args ...string) ([]byte, error) {
		return exec.Command("git", append([]string{"-c", "safe.directory=*", "-C", top}, args...)...).Output()
	}
	if _, err := git("cat-file", "-e", commit+"^{commit}"); err != nil {
		t.Fatalf("commit %s is not in the history of %s, from which the test builds that version: "+
			"'git fetch --unshallow' completes a shallow clone", commit, top)
	}
	archive, err := git("archive", commit)
	if err != nil {
		t.Fatalf("git archive %s: %v", commit, err)
	}
	source := t.TempDir()
	tar := exec.Command("tar", "-x", "-C", source)
	tar.Stdin = bytes.NewReader(archive)
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v\n%s", commit, err, out)
	}
	binary := filepath.Join(t.TempDir(), "ebpnet-"+commit)
	output(t, source, "go", "build", "-trimpath", "-buildvcs=false", "-o", binary, "./cmd/ebpnet")
	return binary
}

// output runs a program outside of all namespaces, and gives its output.
func output(t testing.TB, directory, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = directory
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, stderr.String())
	}
	return out
}
