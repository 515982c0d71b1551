package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
	tpb "github.com/auberge-vm/auberge/protos/tremplinpb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
	"github.com/auberge-vm/auberge/vsock"
)

// Each attack prints a line for what it was answered; those that hold something
// print one when they do, and end with their input.
var attacks = map[string]func(args []string) error{
	"tokens":      tokens,
	"messages":    messages,
	"reports":     reports,
	"urls":        urls,
	"lists":       lists,
	"connections": connections,
	"halves":      halves,
	"resets":      resets,
}

func say(what string, err error) { fmt.Printf("%s: %s\n", what, status.Code(err)) }

// own is the token that the container of this VM has.
func own() (string, error) {
	b, err := os.ReadFile(dir + "/token")
	return string(b), err
}

// hold returns when nobody wants what is held any more.
func hold() { io.Copy(io.Discard, bufio.NewReader(os.Stdin)) }

// tokens says to be somebody else: of another VM, whose token comes as the
// argument.
func tokens(args []string) error {
	c, err := line(vsock.PortContainerListener)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := soon()
	defer cancel()
	h := cpb.NewContainerListenerClient(c)
	for _, t := range []struct{ what, token string }{{"none", ""}, {"made up", "11111111-2222-3333-4444-555555555555"},
		{"too long", strings.Repeat("a", 37)}, {"another VM's", args[0]}} {
		_, err := h.OpenUrl(ctx, &cpb.OpenUrlRequest{Token: t.token, Url: "https://example.org/" + t.what[:4]})
		say(t.what+", OpenUrl", err)
		_, err = h.ContainerReady(ctx, &cpb.ContainerStartupInfo{Token: t.token, GarconPort: garconPort})
		say(t.what+", ContainerReady", err)
		_, err = h.UpdateApplicationList(ctx, &cpb.UpdateApplicationListRequest{Token: t.token})
		say(t.what+", UpdateApplicationList", err)
		_, err = h.ContainerShutdown(ctx, &cpb.ContainerShutdownInfo{Token: t.token})
		say(t.what+", ContainerShutdown", err)
	}
	// What is served at one port is not at another, and nothing is without a
	// name.
	_, err = tpb.NewTremplinListenerClient(c).TremplinReady(ctx, &tpb.TremplinStartupInfo{})
	say("TremplinReady of a container", err)
	for _, method := range []string{"/vm_tools.cicerone.Cicerone/Nothing", "/vm_tools.container.Garcon/GetIcon"} {
		say(method, c.Invoke(ctx, method, &vmtoolspb.EmptyMessage{}, &vmtoolspb.EmptyMessage{}))
	}
	return nil
}

// raw is a message as its bytes.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)   { return v.([]byte), nil }
func (raw) Unmarshal(_ []byte, _ any) error { return nil }
func (raw) Name() string                    { return "proto" }

// messages are too long, too many in one, and no text.
func messages([]string) error {
	token, err := own()
	if err != nil {
		return err
	}
	for _, t := range []struct {
		what, method string
		port         uint32
		body         []byte
	}{
		{"5 MB to tremplin's port", "/vm_tools.tremplin.TremplinListener/UpdateCreateStatus", vsock.PortTremplinListener, make([]byte, 5<<20)},
		{"5 MB of a crash", "/vm_tools.cicerone.CrashListener/SendCrashReport", vsock.PortCrashListener, make([]byte, 5<<20)},
		{"5 MB of a container", "/vm_tools.container.ContainerListener/OpenUrl", vsock.PortContainerListener, make([]byte, 5<<20)},
		{"a million applications", "/vm_tools.container.ContainerListener/UpdateApplicationList", vsock.PortContainerListener, []byte(strings.Repeat("\x12\x00", 1<<20))},
		{"very many ports", "/vm_tools.tremplin.TremplinListener/UpdateListeningPorts", vsock.PortTremplinListener, []byte(strings.Repeat("\x0a\x00", 1<<18))},
		{"a million facts of a crash", "/vm_tools.cicerone.CrashListener/SendCrashReport", vsock.PortCrashListener, []byte(strings.Repeat("\x0a\x00", 1<<20))},
		{"no text", "/vm_tools.container.ContainerListener/OpenUrl", vsock.PortContainerListener, append([]byte{0x0a, 2, 0xff, 0xfe, 0x12, byte(len(token))}, token...)},
		{"no text in a report", "/vm_tools.tremplin.TremplinListener/ContainerShutdown", vsock.PortTremplinListener, []byte{0x0a, 2, 0xff, 0xfe}},
		{"half a message", "/vm_tools.tremplin.TremplinListener/ContainerShutdown", vsock.PortTremplinListener, []byte{0x0a, 200, 'x'}},
	} {
		c, err := line(t.port)
		if err != nil {
			return err
		}
		ctx, cancel := soon()
		say(t.what, c.Invoke(ctx, t.method, t.body, &vmtoolspb.EmptyMessage{}, grpc.ForceCodec(raw{})))
		cancel()
		c.Close()
	}
	return nil
}

// reports are of tremplin, about what nobody has asked for, in states that
// there are not, of names that there cannot be.
func reports([]string) error {
	c, err := line(vsock.PortTremplinListener)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := soon()
	defer cancel()
	h := tpb.NewTremplinListenerClient(c)
	for _, name := range []string{"../../x", "", "/", "penguin", strings.Repeat("a", 1<<16), odd} {
		for _, call := range []func() error{
			func() (err error) {
				_, err = h.UpdateCreateStatus(ctx, &tpb.ContainerCreationProgress{ContainerName: name, Status: 99})
				return
			},
			func() (err error) {
				_, err = h.UpdateCreateStatus(ctx, &tpb.ContainerCreationProgress{ContainerName: name, Status: tpb.ContainerCreationProgress_CREATED})
				return
			},
			func() (err error) {
				_, err = h.UpdateStartStatus(ctx, &tpb.ContainerStartProgress{ContainerName: name, Status: 99})
				return
			},
			func() (err error) {
				_, err = h.UpdateDeletionStatus(ctx, &tpb.ContainerDeletionProgress{ContainerName: name, Status: tpb.ContainerDeletionProgress_DELETED})
				return
			},
			func() (err error) {
				_, err = h.UpdateExportStatus(ctx, &tpb.ContainerExportProgress{ContainerName: name, Status: tpb.ContainerExportProgress_DONE, FailureReason: odd})
				return
			},
		} {
			if err := call(); err != nil {
				say(fmt.Sprintf("a report about %.10q", name), err)
			}
		}
		if name == "penguin" {
			continue
		}
		if _, err := h.ContainerShutdown(ctx, &tpb.ContainerShutdownInfo{ContainerName: name}); err != nil {
			say("an end", err)
		}
	}
	// Whoever has heard of this has heard of all before it.
	for _, status := range []tpb.StartLxdProgress_Status{tpb.StartLxdProgress_STARTING, tpb.StartLxdProgress_STARTED} {
		if _, err := h.UpdateStartLxdStatus(ctx, &tpb.StartLxdProgress{Status: status}); err != nil {
			say("a start of the container manager", err)
		}
	}
	var refused atomic.Int64
	many(2000, func() {
		if _, err := h.UpdateListeningPorts(ctx, &tpb.ListeningPortInfo{}); status.Code(err) == codes.ResourceExhausted {
			refused.Add(1)
		}
	})
	fmt.Printf("many reports are refused: %t\n", refused.Load() > 0)
	crash, err := line(vsock.PortCrashListener)
	if err != nil {
		return err
	}
	defer crash.Close()
	heard := 0
	for range 100 {
		if _, err := pb.NewCrashListenerClient(crash).SendFailureReport(ctx, &pb.FailureReport{FailedProcess: odd}); err == nil {
			heard++
		}
	}
	fmt.Printf("crashes that are heard: %d\n", heard)
	return nil
}

// many calls f so often, many at a time.
func many(n int, f func()) {
	var left atomic.Int64
	left.Store(int64(n))
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for left.Add(-1) >= 0 {
				f()
			}
		})
	}
	all.Wait()
}

// urls opens as many as the argument says.
func urls(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	token, err := own()
	if err != nil {
		return err
	}
	c, err := line(vsock.PortContainerListener)
	if err != nil {
		return err
	}
	defer c.Close()
	h := cpb.NewContainerListenerClient(c)
	var opened, refused, other atomic.Int64
	many(n, func() {
		ctx, cancel := soon()
		defer cancel()
		switch _, err := h.OpenUrl(ctx, &cpb.OpenUrlRequest{Token: token, Url: "https://example.org/many"}); status.Code(err) {
		case codes.OK:
			opened.Add(1)
		case codes.ResourceExhausted:
			refused.Add(1)
		default:
			other.Add(1)
		}
	})
	fmt.Printf("%d %d %d\n", opened.Load(), refused.Load(), other.Load())
	return nil
}

// lists are small and take as much memory as they may, many at a time: names in
// as many languages as the argument says, all of them empty.
func lists(args []string) error {
	token, err := own()
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	names := &cpb.Application_LocalizedString{Values: make([]*cpb.Application_LocalizedString_StringWithLocale, n)}
	for i := range names.Values {
		names.Values[i] = &cpb.Application_LocalizedString_StringWithLocale{}
	}
	body, err := proto.Marshal(&cpb.UpdateApplicationListRequest{Token: token, Application: []*cpb.Application{{DesktopFileId: "x", Name: names}}})
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	var taken, refused atomic.Int64
	var why sync.Map
	for range 32 {
		all.Go(func() {
			c, err := line(vsock.PortContainerListener)
			if err != nil {
				return
			}
			defer c.Close()
			for range 4 {
				ctx, cancel := soon()
				err := c.Invoke(ctx, "/vm_tools.container.ContainerListener/UpdateApplicationList", body, &vmtoolspb.EmptyMessage{}, grpc.ForceCodec(raw{}))
				if err == nil {
					taken.Add(1)
				} else {
					refused.Add(1)
					why.Store(status.Convert(err).Message(), true)
				}
				cancel()
			}
		})
	}
	all.Wait()
	fmt.Printf("%d taken, %d refused", taken.Load(), refused.Load())
	why.Range(func(text, _ any) bool {
		fmt.Printf(", %q", text)
		return true
	})
	fmt.Println()
	return nil
}
