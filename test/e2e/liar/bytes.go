package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/auberge-vm/auberge/vsock"
)

var ports = []uint32{vsock.PortTremplinListener, vsock.PortCrashListener, vsock.PortContainerListener}

// connections opens as many as the argument says, to all ports, and says no
// more than the beginning of a request at each.
func connections(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	failed := 0
	for i := range n {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		c, err := vsock.DialHost(ctx, ports[i%len(ports)])
		cancel()
		if err != nil {
			failed++
			continue
		}
		conns = append(conns, c)
		c.SetWriteDeadline(time.Now().Add(2 * time.Second))
		switch i % 5 {
		case 0: // nothing
		case 1:
			io.WriteString(c, http2.ClientPreface[:10])
		case 2:
			io.WriteString(c, http2.ClientPreface)
		case 3: // the head of a frame of which nothing comes
			io.WriteString(c, http2.ClientPreface)
			f := http2.NewFramer(c, nil)
			f.WriteSettings()
			c.Write([]byte{0, 0x40, 0, 0, 0, 0, 0, 0, 1})
		case 4: // what is no HTTP
			io.WriteString(c, "GET / HTTP/1.1\r\n")
		}
	}
	fmt.Printf("%d %d\n", len(conns), failed)
	hold()
	return nil
}

// call begins a call by its bytes.
func call(f *http2.Framer, stream uint32, path string, end bool) error {
	var block bytes.Buffer
	e := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "host"},
		{"content-type", "application/grpc"}, {"te", "trailers"}} {
		e.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end})
}

// resets begins calls and takes them back at once, the first of them without
// the slash that a method's name begins with.
func resets(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	for _, port := range ports {
		ctx, cancel := soon()
		c, err := vsock.DialHost(ctx, port)
		cancel()
		if err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, http2.ClientPreface)
		f := http2.NewFramer(c, c)
		f.WriteSettings()
		go io.Copy(io.Discard, c)
		sent := 0
		for i := range n {
			path := "/vm_tools.container.ContainerListener/OpenUrl"
			if i%2 == 0 {
				path = path[1:]
			}
			if call(f, uint32(2*i+1), path, i%2 == 0) != nil || f.WriteRSTStream(uint32(2*i+1), http2.ErrCodeCancel) != nil {
				break // the host has had enough
			}
			sent++
		}
		c.Close()
		fmt.Printf("port %d: %t\n", port, sent > 0)
	}
	return nil
}
