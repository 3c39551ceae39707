package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// measure is one kind of traffic and what is counted of it.
type measure struct {
	name, about string
	unit        string
	scale       float64 // from what is counted to the unit
	// lessIsBetter tells floors how to read a ratio; it stays value by base.
	lessIsBetter bool
	socket       int  // SOCK_STREAM or SOCK_DGRAM
	counts       role // whose count is the figure
	serve        func(listener int) (tally, error)
	drive        func(p peer) (tally, error)
	// take, where there is one, measures in place of a server and a client.
	take func(ctx context.Context, over path, opt options) (sample, error)
}

// Sizes of what is sent, in bytes.
const (
	transactionSize = 1
	datagramSize    = 18      // with its headers Ethernet's shortest frame, 60 bytes
	streamChunk     = 1 << 17 // as iperf3
	datagramBuffer  = 4 << 20 // of the receiver: outlasts a time slice of the sender
)

// A sender of datagrams says that it is done by some of another size, apart so
// that not all are lost where queues are full. A receiver that hears none for
// endTimeout, much longer than a busy machine keeps a sender waiting, is done too.
const (
	endSize    = 2
	endMarks   = 3
	endPause   = 10 * time.Millisecond
	endTimeout = 2 * time.Second
)

// idle without one more copy tells who counts copies that the sender is done, and
// a sender without an answer that it is to ask again.
const idle = 200 * time.Millisecond

// bitsPerByteInGbit makes Gbit of bytes.
const bitsPerByteInGbit = 8e-9

// Names of the measures.
const (
	requests    = "tcp_rr"
	connections = "tcp_crr"
	pacedTCP    = "tcp_paced"
	datagrams   = "udp_18"
	oneWay      = "udp_oneway"
	stream      = "tcp_stream"
	copies      = "flood_18"
)

func measures() []measure {
	return slices.Concat([]measure{
		{
			name: requests, about: "1 byte and its answer, over one TCP connection", unit: "transactions/s", scale: 1,
			socket: unix.SOCK_STREAM, counts: client, serve: serveTransactions, drive: driveTransactions,
		},
		{
			name: connections, about: "TCP connect, 1 byte and its answer, close by the server", unit: "transactions/s", scale: 1,
			socket: unix.SOCK_STREAM, counts: client, serve: serveConnections, drive: driveConnections,
		},
		{
			name: datagrams, about: "datagrams of 18 bytes that reached the server's program", unit: "packets/s", scale: 1,
			socket: unix.SOCK_DGRAM, counts: server, serve: serveAnswered, drive: driveAnswered,
		},
		{
			name: oneWay, about: "the same of a flow that is never answered", unit: "packets/s", scale: 1,
			socket: unix.SOCK_DGRAM, counts: server, serve: serveDatagrams, drive: driveDatagrams,
		},
		{
			name: stream, about: "bytes over one TCP connection", unit: "Gbit/s", scale: bitsPerByteInGbit,
			socket: unix.SOCK_STREAM, counts: server, serve: serveStream, drive: driveStream,
		},
		paced(),
		{
			name: copies, about: "copies of broadcast datagrams of 18 bytes that came out of the host", unit: "copies/s", scale: 1,
			socket: unix.SOCK_DGRAM, counts: server, serve: serveCopies, drive: driveBroadcasts,
		},
	}, growthMeasures(), pktgenMeasures(), overloadMeasures(), costMeasures())
}

// clockEvery is how many additions pass between two looks at the clock, once
// there have been as many.
const clockEvery = 64

// tally counts and times. Its clock starts with the first addition, so that
// neighbour resolution and the first packet of a flow are not in the rate,
// and stands at a multiple of clockEvery additions.
type tally struct {
	Total   uint64        `json:"total"`   // all that was counted
	Units   uint64        `json:"units"`   // counted while the clock ran
	Elapsed time.Duration `json:"elapsed"` // nanoseconds the clock ran
	// Of paced requests only.
	Latencies []time.Duration `json:"latencies,omitempty"` // in their order
	CPU       time.Duration   `json:"cpu,omitempty"`       // time of the peer's thread

	start     time.Time
	first     uint64
	additions uint64
}

func (t *tally) add(n uint64) {
	t.Total += n
	switch {
	case t.additions == 0:
		t.start, t.first = time.Now(), n
	case t.additions < clockEvery || t.additions%clockEvery == 0:
		t.Units, t.Elapsed = t.Total-t.first, time.Since(t.start)
	}
	t.additions++
}

// rate gives units a second; it fails if too few were seen to tell.
func (t tally) rate() (float64, error) {
	if t.Elapsed <= 0 {
		return 0, fmt.Errorf("only %d counted: too few for a rate; measure longer", t.Total)
	}
	return float64(t.Units) / t.Elapsed.Seconds(), nil
}

func serveTransactions(listener int) (tally, error) {
	conn, err := accept(listener)
	if err != nil {
		return tally{}, err
	}
	for {
		answered, err := answer(conn)
		if !answered || err != nil {
			return tally{}, err
		}
	}
}

func driveTransactions(p peer) (t tally, err error) {
	conn, err := dial(unix.SOCK_STREAM, p.Dial)
	for err == nil && t.Elapsed < p.Duration {
		if err = ask(conn); err == nil {
			t.add(1)
		}
	}
	return t, err
}

// serveConnections closes each connection first: TIME_WAIT is then here, and
// the client's ports, of which there are few, are free again at once.
func serveConnections(listener int) (tally, error) {
	for {
		conn, err := accept(listener)
		if err == nil {
			_, err = answer(conn)
		}
		if err == nil {
			err = closeSocket(conn)
		}
		if err != nil {
			return tally{}, err
		}
	}
}

func driveConnections(p peer) (t tally, err error) {
	end := make([]byte, transactionSize)
	for t.Elapsed < p.Duration {
		conn, err := dial(unix.SOCK_STREAM, p.Dial)
		if err == nil {
			err = ask(conn)
		}
		if err == nil {
			_, err = read(conn, end) // until the server has closed
		}
		if err == nil {
			err = closeSocket(conn)
		}
		if err != nil {
			return t, err
		}
		t.add(1)
	}
	return t, nil
}

// ask sends a request and awaits its answer.
func ask(conn int) error {
	var b [transactionSize]byte
	if _, err := write(conn, b[:]); err != nil {
		return err
	}
	n, err := read(conn, b[:])
	if err == nil && n == 0 {
		err = errors.New("the server closed before it answered")
	}
	return err
}

// answer returns false when the client has closed.
func answer(conn int) (bool, error) {
	var b [transactionSize]byte
	n, err := read(conn, b[:])
	if err != nil || n == 0 {
		return false, err
	}
	_, err = write(conn, b[:])
	return err == nil, err
}

// serveAnswered answers a datagram before it counts any: with that the flow is
// an established one to whatever tracks it on the way.
func serveAnswered(socket int) (tally, error) {
	var b [transactionSize]byte
	_, from, err := unix.Recvfrom(socket, b[:], 0)
	if err == nil {
		err = unix.Sendto(socket, b[:], 0, from)
	}
	if err != nil {
		return tally{}, err
	}
	return serveDatagrams(socket)
}

func serveDatagrams(socket int) (t tally, err error) {
	b := make([]byte, datagramSize)
	if _, err := read(socket, b); err != nil {
		return t, err
	}
	t.add(1)
	if err := receiveTimeout(socket, endTimeout); err != nil {
		return t, err
	}
	for {
		n, err := read(socket, b)
		if n == endSize || errors.Is(err, unix.EAGAIN) {
			return t, nil
		}
		if err != nil {
			return t, err
		}
		t.add(1)
	}
}

func driveAnswered(p peer) (tally, error) {
	socket, err := dial(unix.SOCK_DGRAM, p.Dial)
	if err == nil {
		err = receiveTimeout(socket, idle)
	}
	if err == nil {
		err = ask(socket)
	}
	for errors.Is(err, unix.EAGAIN) { // the first may be lost where a link is not up yet
		err = ask(socket)
	}
	if err != nil {
		return tally{}, err
	}
	return sendAndEnd(socket, p.Duration)
}

func driveDatagrams(p peer) (tally, error) {
	socket, err := dial(unix.SOCK_DGRAM, p.Dial)
	if err != nil {
		return tally{}, err
	}
	return sendAndEnd(socket, p.Duration)
}

func sendDatagrams(socket int, duration time.Duration) (t tally, err error) {
	b := make([]byte, datagramSize)
	for err == nil && t.Elapsed < duration {
		if _, err = write(socket, b); err == nil {
			t.add(1)
		}
	}
	return t, err
}

// sendAndEnd is sendDatagrams to who counts datagrams until their end is told.
func sendAndEnd(socket int, duration time.Duration) (tally, error) {
	t, err := sendDatagrams(socket, duration)
	var end [endSize]byte
	for i := 0; err == nil && i < endMarks; i++ {
		time.Sleep(endPause)
		if _, gone := write(socket, end[:]); gone != nil {
			break // it has heard the one before
		}
	}
	return t, err
}

func serveStream(listener int) (t tally, err error) {
	conn, err := accept(listener)
	b := make([]byte, streamChunk)
	for err == nil {
		var n int
		if n, err = read(conn, b); n == 0 {
			return t, err
		}
		t.add(uint64(n))
	}
	return t, err
}

func driveStream(p peer) (t tally, err error) {
	conn, err := dial(unix.SOCK_STREAM, p.Dial)
	b := make([]byte, streamChunk)
	for err == nil && t.Elapsed < p.Duration {
		var n int
		if n, err = write(conn, b); err == nil {
			t.add(uint64(n))
		}
	}
	return t, err
}
