package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// bbolt trusts its file: a damaged one makes it panic, fault, run for ever, or
// write over pages that hold data. So each file is read through before bbolt
// sees it: every page must be reached exactly once or be free, every element
// lie inside its page, the keys be in order, and every value fit its checksum.
// The layout is bbolt's format version 2, in the machine's own byte order.

// damage says what of a file is not as bbolt or this package wrote it.
type damage string

func (d damage) Error() string { return string(d) }

func damaged(format string, args ...any) error { return damage(fmt.Sprintf(format, args...)) }

// Parts of the format, in bytes.
const (
	pageHeader    = 16 // id, flags, count, overflow
	elementHeader = 16 // leaf: flags, pos, key size, value size; branch: pos, key size, page id
	bucketHeader  = 16 // root page id, sequence
	metaSize      = 64 // its last 8 bytes are the checksum of those before
)

// The values that bbolt writes.
const (
	magic      = 0xED0CDAED
	version    = 2
	branchPage = 0x01
	leafPage   = 0x02
	metaPage   = 0x04
	freePage   = 0x10
	bucketFlag = 0x01
	// A free list as long as this or longer has its length before its entries.
	longFreeList = 0xFFFF
	noFreeList   = ^uint64(0)
)

var native = binary.NativeEndian

// meta is what a meta page says of the whole file.
type meta struct {
	pageSize             uint32
	root, freeList, high uint64 // page ids; high is the first beyond the file's
	transaction          uint64
}

// checker walks one file.
type checker struct {
	data []byte
	meta meta
	used []bool // by page id: reached, or free
}

// check reads the file through. It changes nothing.
func check(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	c := checker{data: make([]byte, info.Size())}
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, info.Size()), c.data); err != nil {
		return err
	}
	if err := c.readMeta(); err != nil {
		return err
	}
	if err := c.takeFreeList(); err != nil {
		return err
	}
	if err := c.walk(c.meta.root, nil, nil); err != nil {
		return err
	}
	for id, used := range c.used {
		if !used {
			return damaged("page %d is neither used nor free", id)
		}
	}
	return nil
}

// readMeta takes the later of the two meta pages. Both must be whole: bbolt
// would do with one, but then silently forget the last change.
func (c *checker) readMeta() error {
	first, err := parseMeta(c.data, 0)
	if err != nil {
		return err
	}
	second, err := parseMeta(c.data, uint64(first.pageSize))
	if err != nil {
		return err
	}
	c.meta = first
	if second.transaction > first.transaction {
		c.meta = second
	}
	if second.pageSize != first.pageSize || c.meta.high > uint64(len(c.data))/uint64(first.pageSize) {
		return damaged("the file is shorter than its %d pages of %d bytes", c.meta.high, first.pageSize)
	}
	c.used = make([]bool, c.meta.high)
	return errors.Join(c.take(0, 0), c.take(1, 0))
}

func parseMeta(data []byte, offset uint64) (meta, error) {
	if uint64(len(data)) < offset+pageHeader+metaSize {
		return meta{}, damaged("the file has only %d bytes", len(data))
	}
	flags := native.Uint16(data[offset+8:])
	b := data[offset+pageHeader:][:metaSize]
	sum := fnv.New64a()
	sum.Write(b[:metaSize-8]) // a hash's Write never fails
	m := meta{
		pageSize:    native.Uint32(b[8:]),
		root:        native.Uint64(b[16:]),
		freeList:    native.Uint64(b[32:]),
		high:        native.Uint64(b[40:]),
		transaction: native.Uint64(b[48:]),
	}
	if native.Uint32(b) != magic || native.Uint32(b[4:]) != version || flags != metaPage ||
		native.Uint64(b[metaSize-8:]) != sum.Sum64() || m.pageSize < pageHeader+metaSize {
		return meta{}, damaged("no valid header at byte %d", offset)
	}
	return m, nil
}

// take marks a page and those that it runs on into as reached.
func (c *checker) take(id uint64, overflow uint32) error {
	if id >= c.meta.high || uint64(overflow) >= c.meta.high-id {
		return damaged("page %d lies beyond the last, %d", id, c.meta.high-1)
	}
	for n := id; n <= id+uint64(overflow); n++ {
		if c.used[n] {
			return damaged("page %d is in use twice", n)
		}
		c.used[n] = true
	}
	return nil
}

// page takes the page id and gives its flags, count and bytes.
func (c *checker) page(id uint64) (flags uint16, count int, page []byte, err error) {
	if id >= c.meta.high {
		return 0, 0, nil, damaged("page %d lies beyond the last, %d", id, c.meta.high-1)
	}
	size := uint64(c.meta.pageSize)
	b := c.data[id*size:]
	overflow := native.Uint32(b[12:])
	if err := c.take(id, overflow); err != nil {
		return 0, 0, nil, err
	}
	if native.Uint64(b) != id {
		return 0, 0, nil, damaged("page %d says it is page %d", id, native.Uint64(b))
	}
	return native.Uint16(b[8:]), int(native.Uint16(b[10:])), b[:(1+uint64(overflow))*size], nil
}

func (c *checker) takeFreeList() error {
	if c.meta.freeList == noFreeList {
		return damaged("it has no list of free pages")
	}
	flags, count, page, err := c.page(c.meta.freeList)
	if err != nil {
		return err
	}
	ids := page[pageHeader:]
	n := uint64(count)
	if n == longFreeList {
		n, ids = native.Uint64(ids), ids[8:]
	}
	if flags != freePage || n > uint64(len(ids)/8) {
		return damaged("page %d is no list of free pages", c.meta.freeList)
	}
	for ; n > 0; n, ids = n-1, ids[8:] {
		if err := c.take(native.Uint64(ids), 0); err != nil {
			return err
		}
	}
	return nil
}

// walk checks the tree below the page id, whose keys lie from low to below
// high (nil: no bound).
func (c *checker) walk(id uint64, low, high []byte) error {
	flags, count, page, err := c.page(id)
	if err != nil {
		return err
	}
	switch flags {
	case leafPage:
		return c.walkLeaf(page, count, low, high)
	case branchPage:
		return c.walkBranch(page, count, low, high)
	}
	return damaged("page %d is neither branch nor leaf", id)
}

func (c *checker) walkBranch(page []byte, count int, low, high []byte) error {
	keys := make([][]byte, count+1)
	keys[count] = high
	children := make([]uint64, count)
	elements := newElements(page, count)
	for i := range count {
		header, err := elements.header()
		if err != nil {
			return err
		}
		children[i] = native.Uint64(header[8:])
		keys[i], err = elements.data(native.Uint32(header), uint64(native.Uint32(header[4:])))
		if err != nil {
			return err
		}
		if err := inOrder(low, keys[i], high, i == 0); err != nil {
			return err
		}
		low = keys[i]
	}
	if count == 0 {
		return damaged("a branch page is empty")
	}
	for i, child := range children {
		if err := c.walk(child, keys[i], keys[i+1]); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) walkLeaf(page []byte, count int, low, high []byte) error {
	elements := newElements(page, count)
	for i := range count {
		header, err := elements.header()
		if err != nil {
			return err
		}
		keySize := uint64(native.Uint32(header[8:]))
		both, err := elements.data(native.Uint32(header[4:]), keySize+uint64(native.Uint32(header[12:])))
		if err != nil {
			return err
		}
		key, value := both[:keySize], both[keySize:]
		if err := inOrder(low, key, high, i == 0); err != nil {
			return err
		}
		low = key
		switch native.Uint32(header) {
		case bucketFlag:
			err = c.walkBucket(key, value)
		case 0:
			err = checkSeal(key, value)
		default:
			err = damaged("entry %q is of no known kind", key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// walkBucket checks a bucket, a small one being a leaf page inside the value.
func (c *checker) walkBucket(name, value []byte) error {
	if len(value) < bucketHeader {
		return damaged("bucket %q is cut short", name)
	}
	if root := native.Uint64(value); root != 0 {
		return c.walk(root, nil, nil)
	}
	page := value[bucketHeader:]
	if len(page) < pageHeader || native.Uint16(page[8:]) != leafPage {
		return damaged("bucket %q is cut short", name)
	}
	return c.walkLeaf(page, int(native.Uint16(page[10:])), nil, nil)
}

// elements reads a page's elements one after the other: their headers, and
// after all of those, without a gap, what the headers point at. A header that
// bbolt would skip or read twice so does not go unseen.
type elements struct {
	page     []byte
	at       uint64 // the header read last
	next     uint64 // the next header
	nextData uint64
}

func newElements(page []byte, count int) *elements {
	return &elements{page: page, next: pageHeader, nextData: pageHeader + uint64(count)*elementHeader}
}

func (e *elements) header() ([]byte, error) {
	e.at, e.next = e.next, e.next+elementHeader
	if e.next > uint64(len(e.page)) {
		return nil, damaged("a page has more elements than room")
	}
	return e.page[e.at:e.next], nil
}

// data gives the size bytes that lie pos bytes after the start of the header.
func (e *elements) data(pos uint32, size uint64) ([]byte, error) {
	from := e.at + uint64(pos)
	if from != e.nextData || size > uint64(len(e.page)) || from+size > uint64(len(e.page)) {
		return nil, damaged("an element of a page is out of place")
	}
	e.nextData += size
	return e.page[from:e.nextData], nil
}

// inOrder checks that key lies between its neighbours. A first key may equal
// the bound that its parent set.
func inOrder(low, key, high []byte, first bool) error {
	order := bytes.Compare(low, key)
	if low != nil && (order > 0 || order == 0 && !first) || high != nil && bytes.Compare(key, high) >= 0 {
		return damaged("key %q is out of order", key)
	}
	return nil
}
