// Guest runs inside a VM for the benchmarks: the plain end of streams, against
// which sessions are measured. It is put into the VM through a session.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"

	"github.com/auberge-vm/auberge/vsock"
)

// chunk is how much is read and written at once, in bytes: what the vsock
// backend is known to bring through.
const chunk = 32 << 10

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
		os.Exit(1)
	}
}

// run is "serve PORT", or "take" and "give N", which do with standard input
// and output what a stream would ask of serve.
func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		port, err := strconv.ParseUint(args[1], 10, 32)
		if err != nil {
			return err
		}
		return serve(uint32(port))
	case len(args) == 1 && args[0] == "take":
		_, err := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{os.Stdin}, make([]byte, chunk))
		return err
	case len(args) == 2 && args[0] == "give":
		n, err := strconv.ParseInt(args[1], 10, 64)
		if err != nil {
			return err
		}
		return give(os.Stdout, n)
	}
	return errors.New("usage: guest serve PORT | take | give BYTES")
}

func serve(port uint32) error {
	l, err := vsock.ListenGuest(port, false)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if err := answer(c); err != nil {
				fmt.Fprintln(os.Stderr, "guest:", err)
			}
		}()
	}
}

// answer serves one stream, whose first line says what it is for.
func answer(c net.Conn) error {
	r := bufio.NewReaderSize(c, chunk)
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	var n int64
	switch {
	case scan(line, "take %d\n", &n):
		if _, err := io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{io.LimitReader(r, n)}, make([]byte, chunk)); err != nil {
			return err
		}
		_, err = io.WriteString(c, "taken\n")
	case scan(line, "give %d\n", &n):
		err = give(c, n)
	default:
		_, err = io.WriteString(c, line)
	}
	if err != nil {
		return err
	}
	// The other end closes first: what is under way must not be lost.
	_, err = io.Copy(io.Discard, r)
	return err
}

func scan(line, format string, n *int64) bool {
	k, _ := fmt.Sscanf(line, format, n)
	return k == 1
}

func give(w io.Writer, n int64) error {
	b := make([]byte, chunk)
	for n > 0 {
		k := min(n, chunk)
		if _, err := w.Write(b[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

// These hide ReadFrom and WriteTo, which would choose other sizes.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
