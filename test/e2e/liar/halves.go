package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"

	"golang.org/x/net/http2"

	"github.com/auberge-vm/auberge/vsock"
)

// halves are calls of which all but the last bytes come: as many, and as large,
// as may be at a port, and more.
func halves([]string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var ends []chan bool
	for _, t := range []struct {
		port   uint32
		method string
		size   uint32
		calls  int
	}{
		{vsock.PortTremplinListener, "vm_tools.tremplin.TremplinListener/ContainerShutdown", 1 << 20, 18},
		{vsock.PortCrashListener, "vm_tools.cicerone.CrashListener/SendCrashReport", 4 << 20, 6},
		{vsock.PortContainerListener, "vm_tools.container.ContainerListener/UpdateApplicationList", 4 << 20, 40},
	} {
		client := &http.Client{Transport: &http2.Transport{AllowHTTP: true, DisableCompression: true,
			DialTLSContext: func(ctx context.Context, _, _ string, _ *tls.Config) (net.Conn, error) {
				return vsock.DialHost(ctx, t.port)
			}}}
		for range t.calls {
			end := make(chan bool, 2) // whether all of it was taken
			ends = append(ends, end)
			head := binary.BigEndian.AppendUint32([]byte{0}, t.size)
			body := io.MultiReader(bytes.NewReader(head), bytes.NewReader(make([]byte, t.size-16)), stop{ctx, end})
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://host/"+t.method, body)
			if err != nil {
				return err
			}
			req.Header.Set("Content-Type", "application/grpc")
			req.Header.Set("TE", "trailers")
			go func() {
				if r, err := client.Do(req); err == nil {
					r.Body.Close()
				}
				end <- false
			}()
		}
	}
	taken := 0
	for _, end := range ends {
		if <-end {
			taken++
		}
	}
	fmt.Printf("%d %d\n", taken, len(ends)-taken)
	hold()
	return nil
}

// stop is where a call stands still.
type stop struct {
	ctx context.Context
	end chan<- bool
}

func (s stop) Read([]byte) (int, error) {
	s.end <- true
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}
