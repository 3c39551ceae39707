package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	bolt "go.etcd.io/bbolt"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// sample makes a store file with trees several pages deep and free pages.
func sample(t testing.TB, endpoints int) []byte {
	t.Helper()
	dir := t.TempDir()
	s := open(t, dir)
	update(t, s, func(tx *Tx) error { return tx.PutNetwork(spec.Network{Name: "front", ID: 1}) })
	fill(t, s, 1, endpoints)
	update(t, s, func(tx *Tx) error { return tx.DeleteEndpoint(endpoint(1).Name) })
	s.Close()
	return readFile(t, filepath.Join(dir, File))
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// dirWith gives a state directory with that store file.
func dirWith(t testing.TB, data []byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, File), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// contents gives all entries of the store in dir.
func contents(dir string) (map[string]string, error) {
	s, err := OpenReadOnly(context.Background(), dir)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	err = s.View(func(tx *Tx) error {
		for _, bucket := range buckets() {
			for key, value := range tx.each(bucket, "") {
				all[bucket+":"+key] = string(value)
			}
		}
		return nil
	})
	return all, errors.Join(err, s.Close())
}

func TestDamageIsKept(t *testing.T) {
	t.Parallel()
	good := sample(t, 300)
	page := os.Getpagesize()
	random := make([]byte, 40_000)
	noise := rand.NewChaCha8([32]byte{1})
	_, _ = noise.Read(random) // it never fails
	for name, data := range map[string][]byte{
		"one byte":       {0},
		"text":           []byte("not a store\n"),
		"zeros":          make([]byte, 8*page),
		"random":         random,
		"half a page":    good[:page/2],
		"headers only":   good[:2*page],
		"cut in half":    good[:len(good)/2/page*page],
		"cut in a page":  good[:len(good)/2+77],
		"zeroed beyond":  append(bytes.Clone(good[:len(good)/2]), make([]byte, len(good)/2)...),
		"random beyond":  append(bytes.Clone(good[:3*page]), random...),
		"pages swapped":  swapped(good, 5, 9),
		"first page cut": good[page:],
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mustRefuse(t, dirWith(t, data), ErrDamaged)
		})
	}
}

func swapped(data []byte, i, j int) []byte {
	page := os.Getpagesize()
	d := bytes.Clone(data)
	copy(d[i*page:], data[j*page:(j+1)*page])
	copy(d[j*page:], data[i*page:(i+1)*page])
	return d
}

// TestEveryFlippedByte flips bytes all over the file, above all in the
// headers of pages: it is refused, or reads as before (the byte meant nothing).
func TestEveryFlippedByte(t *testing.T) {
	t.Parallel()
	const stride, header = 97, 64
	good := sample(t, 80)
	dir := dirWith(t, good)
	want, err := contents(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, File)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	refused := 0
	for at := range good {
		if at%stride != 0 && at%os.Getpagesize() >= header {
			continue
		}
		flipped := []byte{good[at] ^ 1<<(at%8)}
		if _, err := f.WriteAt(flipped, int64(at)); err != nil {
			t.Fatal(err)
		}
		got, err := contents(dir)
		if errors.Is(err, ErrDamaged) {
			refused++
		} else if err != nil || !maps.Equal(want, got) {
			t.Errorf("byte %d: %v, %s", at, err, cmp.Diff(want, got))
		}
		if _, err := f.WriteAt(good[at:at+1], int64(at)); err != nil {
			t.Fatal(err)
		}
	}
	if refused == 0 {
		t.Error("none was refused")
	}
	if got, err := contents(dir); err != nil || !maps.Equal(want, got) {
		t.Errorf("with every byte put back: %v", err)
	}
}

// FuzzCheck gives bbolt whatever check lets through.
func FuzzCheck(f *testing.F) {
	good := sample(f, 60)
	f.Add(uint32(0), []byte{})
	page := os.Getpagesize()
	f.Add(uint32(5*page), good[4*page:5*page])
	f.Add(uint32(3*page+10), []byte{0xff, 0xff})
	f.Fuzz(func(t *testing.T, at uint32, patch []byte) {
		data := bytes.Clone(good)
		copy(data[int(at)%len(data):], patch)
		dir := dirWith(t, data)
		s, err := Open(context.Background(), dir)
		if err != nil {
			if got := readFile(t, filepath.Join(dir, File)); !bytes.Equal(got, data) {
				t.Error("a refused file was changed")
			}
			return
		}
		defer s.Close()
		fill(t, s, 60, 90)
	})
}

// TestCheckAgreesWithBbolt lets bbolt's own check see files that check passed.
func TestCheckAgreesWithBbolt(t *testing.T) {
	t.Parallel()
	for _, endpoints := range []int{2, 20, 3000} {
		db, err := bolt.Open(filepath.Join(dirWith(t, sample(t, endpoints)), File), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.View(func(tx *bolt.Tx) error {
			for err := range tx.Check() {
				t.Error(err)
			}
			return nil
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Error(err)
		}
	}
}

// TestCutShortAtAnyPage stops a change after each page that it writes: bbolt
// writes its header last, so that all but the whole is the state before.
func TestCutShortAtAnyPage(t *testing.T) {
	t.Parallel()
	page := os.Getpagesize()
	before := sample(t, 300)
	dir := dirWith(t, before)
	want, err := contents(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	fill(t, s, 300, 310)
	s.Close()
	after := readFile(t, filepath.Join(dir, File))
	whole, err := contents(dir)
	if err != nil {
		t.Fatal(err)
	}
	torn := append(bytes.Clone(before), make([]byte, len(after)-len(before))...)
	written := 0
	put := func(at int) bool {
		changed := !bytes.Equal(torn[at:at+page], after[at:at+page])
		copy(torn[at:at+page], after[at:at+page])
		return changed
	}
	for at := 2 * page; at < len(after); at += page {
		if !put(at) {
			continue
		}
		written++
		if got, err := contents(dirWith(t, torn)); err != nil || !maps.Equal(want, got) {
			t.Errorf("after %d pages: %v", written, err)
		}
	}
	if written == 0 {
		t.Error("no page was written")
	}
	put(0)
	put(page)
	if got, err := contents(dirWith(t, torn)); err != nil || !maps.Equal(whole, got) {
		t.Errorf("after the header: %v", err)
	}
}

// writerDir makes this test binary a writer that is killed: see TestMain.
const writerDir = "EBPNET_TEST_WRITER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		fmt.Fprintln(os.Stderr, write(dir))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// write adds endpoints, as many commands would, and says when each is kept.
func write(dir string) error {
	for n := 1; ; n++ {
		s, err := Open(context.Background(), dir)
		if err != nil {
			return err
		}
		err = s.Update(func(tx *Tx) error {
			id, err := tx.NextID(KindEndpoint, 1, 1<<15)
			if err != nil {
				return err
			}
			return errors.Join(tx.PutEndpoint(endpoint(int(id))), tx.MarkPending(KindEndpoint, endpoint(int(id)).Name))
		})
		if err := errors.Join(err, s.Close()); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// TestKilledWriters kills writers at work: what they said was kept is there,
// whole, and the next goes on.
func TestKilledWriters(t *testing.T) {
	t.Parallel()
	const rounds, changes = 6, 15
	dir := t.TempDir()
	kept := 0
	for round := range rounds {
		writer := exec.Command(os.Args[0])
		writer.Env = append(os.Environ(), writerDir+"="+dir)
		writer.Stderr = os.Stderr
		out, err := writer.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < changes+round && lines.Scan(); n++ {
			kept++
		}
		if err := writer.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			kept++
		}
		_ = writer.Wait() // killed, as it says
		s := open(t, dir)
		update(t, s, func(tx *Tx) error {
			all, err := tx.Endpoints()
			if n := len(all); n != kept && n != kept+1 {
				t.Errorf("%d endpoints, the writers said %d", n, kept)
			}
			kept = len(all)
			for i, e := range all {
				if diff := cmp.Diff(endpoint(i+1), e, cmpopts.EquateComparable(e.Addresses[0])); diff != "" {
					t.Error(diff)
				}
			}
			pending, err2 := tx.Pending()
			if len(pending) != kept {
				t.Errorf("%d changes are pending, want %d", len(pending), kept)
			}
			compareIndexes(t, tx)
			return errors.Join(err, err2)
		})
		s.Close()
	}
}
