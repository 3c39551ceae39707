package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path"
)

// archive is a cpio archive of the format "newc", which the kernel unpacks as
// its first root: Documentation/driver-api/early-userspace/buffer-format.rst.
type archive struct {
	content bytes.Buffer
	inode   int
	there   map[string]bool // names of files and directories
}

const (
	archiveMagic     = "070701"
	archiveEnd       = "TRAILER!!!"
	archiveAlignment = 4
	modeDirectory    = 0o040755
	modeProgram      = 0o100755
)

// clone gives a copy to which more can be added.
func (a *archive) clone() *archive {
	b := &archive{inode: a.inode, there: maps.Clone(a.there)}
	b.content.Write(a.content.Bytes())
	return b
}

// has tells whether the archive has a file or directory of this name.
func (a *archive) has(name string) bool { return a.there[path.Clean(name)[1:]] }

// add adds a file that may be executed, and the directories above it. A file
// that is there already stays.
func (a *archive) add(name string, data []byte) {
	name = path.Clean(name)[1:]
	if a.there[name] {
		return
	}
	a.addDirectory(path.Dir("/" + name))
	a.entry(name, modeProgram, data)
}

// addDirectory adds a directory and those above it.
func (a *archive) addDirectory(name string) {
	name = path.Clean(name)[1:]
	if name == "" || a.there[name] {
		return
	}
	a.addDirectory(path.Dir("/" + name))
	a.entry(name, modeDirectory, nil)
}

func (a *archive) entry(name string, mode int, data []byte) {
	a.there[name] = true
	a.inode++
	a.content.WriteString(archiveMagic)
	const links, none = 1, 0
	for _, field := range []int{
		a.inode, mode, none /* owner */, none /* group */, links, none /* time */, len(data),
		none, none, none, none /* devices */, len(name) + 1, none, /* checksum */
	} {
		fmt.Fprintf(&a.content, "%08x", field)
	}
	a.content.WriteString(name + "\x00")
	a.align()
	a.content.Write(data)
	a.align()
}

func (a *archive) align() {
	for a.content.Len()%archiveAlignment != 0 {
		a.content.WriteByte(0)
	}
}

// write ends the archive and writes it to a file.
func (a *archive) write(file string) error {
	a.entry(archiveEnd, 0, nil)
	return os.WriteFile(file, a.content.Bytes(), 0o644)
}
