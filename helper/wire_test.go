package helper_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/helper"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/seqpacket"
)

// raw sends packets that no client of ours sends.
type raw struct {
	t *testing.T
	c *net.UnixConn
}

func (r *running) raw(t *testing.T) raw {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: r.Path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return raw{t, c}
}

func (r raw) send(packet string, files ...*os.File) {
	r.t.Helper()
	if err := (seqpacket.Limits{Bytes: 160 << 10, Files: 100}).Send(r.c, []byte(packet), files); err != nil {
		r.t.Fatal(err)
	}
}

// answer returns the error that comes, empty for a success or a connection
// that is closed.
func (r raw) answer() string {
	r.t.Helper()
	p, err := (seqpacket.Limits{Bytes: 160 << 10, Files: 100}).Receive(r.c)
	if errors.Is(err, io.EOF) {
		return ""
	}
	if err != nil {
		r.t.Fatal(err)
	}
	if len(p.Files) > 0 {
		seqpacket.CloseAll(p.Files)
		r.t.Error("a descriptor came with an error")
	}
	var reply struct{ Error string }
	if err := json.Unmarshal(p.Data, &reply); err != nil {
		r.t.Fatalf("the answer %q: %v", p.Data, err)
	}
	return reply.Error
}

// What no client of ours sends is refused, all of it, and the server goes on.
func TestHostileRequests(t *testing.T) {
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	many := func(n int) (all []*os.File) {
		for range n {
			all = append(all, null)
		}
		return all
	}
	good := `{"verb":"dial","args":{"cid":40,"port":0}}`
	r := serve(t, func(s *helper.Server) { s.Networks = networks(t) })
	tapAdd := func(id, gateway, guest string) string {
		return fmt.Sprintf(`{"verb":"tap-add","args":{"id":%q,"gateway":%q,"guest":%q}}`, id, gateway, guest)
	}
	for name, test := range map[string]struct {
		packet string
		files  []*os.File
		want   string
	}{
		"a request of ours":           {packet: good, want: "there is no port 0"},
		"text":                        {packet: "hello", want: "no request"},
		"space":                       {packet: " ", want: "no request"},
		"null":                        {packet: "null", want: "no request"},
		"list":                        {packet: "[" + good + "]", want: "no request"},
		"nothing":                     {packet: "{}", want: "no request"},
		"no arguments":                {packet: `{"verb":"dial"}`, want: "no request"},
		"null for arguments":          {packet: `{"verb":"dial","args":null}`, want: "no request"},
		"list for arguments":          {packet: `{"verb":"dial","args":[]}`, want: "no request"},
		"unknown verb":                {packet: `{"verb":"exec","args":{}}`, want: `there is no verb "exec"`},
		"no verb":                     {packet: `{"verb":"","args":{}}`, want: `there is no verb ""`},
		"verb in capitals":            {packet: `{"verb":"DIAL","args":{}}`, want: "there is no verb"},
		"unknown field":               {packet: `{"verb":"dial","args":{"cid":40,"port":0},"as":0}`, want: "no request"},
		"unknown argument":            {packet: `{"verb":"dial","args":{"cid":40,"port":0,"uid":0}}`, want: "no request"},
		"another verb's argument":     {packet: `{"verb":"open","args":{"uid":64199,"path":"L2E=","mode":"ro","cid":40}}`, want: "no request"},
		"argument twice":              {packet: `{"verb":"dial","args":{"cid":2,"cid":40,"port":0}}`, want: "no request"},
		"verb twice":                  {packet: `{"verb":"open","verb":"dial","args":{"cid":40,"port":0}}`, want: "no request"},
		"field in capitals":           {packet: `{"VERB":"dial","args":{"cid":40,"port":0}}`, want: "no request"},
		"two requests":                {packet: good + good, want: "no request"},
		"something behind it":         {packet: good + "\n", want: "no request"},
		"cut off":                     {packet: good[:len(good)-1], want: "no request"},
		"negative number":             {packet: `{"verb":"dial","args":{"cid":-1,"port":8888}}`, want: "no request"},
		"number too large":            {packet: `{"verb":"dial","args":{"cid":4294967336,"port":8888}}`, want: "no request"},
		"broken number":               {packet: `{"verb":"dial","args":{"cid":40.5,"port":8888}}`, want: "no request"},
		"text for a number":           {packet: `{"verb":"dial","args":{"cid":"40","port":8888}}`, want: "no request"},
		"path that is no base64":      {packet: `{"verb":"open","args":{"uid":64199,"path":"/etc","mode":"ro"}}`, want: "absolute"},
		"depth":                       {packet: strings.Repeat("[", 15<<10), want: "no request"},
		"as long as can be":           {packet: strings.Repeat(" ", helper.MaxRequest), want: "no request"},
		"too long":                    {packet: strings.Repeat(" ", helper.MaxRequest+1), want: "truncated"},
		"far too long":                {packet: strings.Repeat(" ", 150<<10), want: "truncated"},
		"a descriptor":                {packet: good, files: many(1), want: "descriptors"},
		"some descriptors":            {packet: good, files: many(6), want: "descriptors"},
		"many descriptors":            {packet: good, files: many(100), want: "truncated"},
		"descriptors alone":           {packet: "x", files: many(2), want: "descriptors"},
		"too many groups":             {packet: fmt.Sprintf(`{"verb":"open","args":{"uid":64199,"groups":[1%s],"path":"L2E=","mode":"ro"}}`, strings.Repeat(",1", helper.MaxGroups)), want: "groups are more"},
		"no path":                     {packet: `{"verb":"open","args":{"uid":64199,"path":null,"mode":"ro"}}`, want: "absolute"},
		"relative path":               {packet: `{"verb":"open","args":{"uid":64199,"path":"YQ==","mode":"ro"}}`, want: "absolute"},
		"base64 spelled another way":  {packet: `{"verb":"open","args":{"uid":64199,"path":"L2F=","mode":"ro"}}`, want: "no request"},
		"escapes that need not be":    {packet: `{"verb":"\u0064ial","args":{"cid":40,"port":0}}`, want: "no request"},
		"network without an id":       {packet: tapAdd("", "100.115.128.1/29", "100.115.128.2"), want: "no network of a VM"},
		"network of another file":     {packet: tapAdd("../lo", "100.115.128.1/29", "100.115.128.2"), want: "no network of a VM"},
		"network of the world":        {packet: tapAdd("abc", "8.8.8.1/29", "8.8.8.2"), want: "not in 100.115.128.0/17"},
		"network of all":              {packet: tapAdd("abc", "0.0.0.0/0", "100.115.128.2"), want: "not between"},
		"network of no kind":          {packet: tapAdd("abc", "", ""), want: "no IPv4 address"},
		"network spelled another way": {packet: tapAdd("abc", "100.115.128.001/29", "100.115.128.2"), want: "no request"},
		"network in other words":      {packet: tapAdd("abc", "::ffff:100.115.128.1/125", "100.115.128.2"), want: "no IPv4 address"},
		"guest of another network":    {packet: tapAdd("abc", "100.115.128.1/29", "100.115.128.10"), want: "not in the network"},
		"removal of lo":               {packet: `{"verb":"tap-remove","args":{"id":"../../lo"}}`, want: "no network of a VM"},
		"removal of nothing":          {packet: `{"verb":"tap-remove","args":{"id":""}}`, want: "no network of a VM"},
		"control characters for a VM": {packet: `{"verb":"dial","args":{"cid":40,"port":8888,"vm":"a\nb"}}`, want: "no VM's id"},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.raw(t)
			c.send(test.packet, test.files...)
			if got := c.answer(); !strings.Contains(got, test.want) || got == "" {
				t.Errorf("answered %q, want %q", got, test.want)
			}
			// Nothing is answered twice.
			if got := c.answer(); got != "" {
				t.Errorf("a second answer: %q", got)
			}
		})
	}
	// Every descriptor that came is closed; this process holds both ends.
	before := -1
	for range 5 {
		c := r.raw(t)
		c.send(good, many(50)...)
		c.answer()
		c.answer() // the end: the helper has closed its side
		c.c.Close()
		if now := descriptors(t); before >= 0 && now > before {
			t.Errorf("%d descriptors before, %d after", before, now)
		} else {
			before = now
		}
	}
	c := r.raw(t)
	c.send(good)
	if got := c.answer(); !strings.Contains(got, "there is no port 0") {
		t.Errorf("in the end: %q", got)
	}
}

// FuzzRequest: a packet is read in one way or not at all, and what is done
// after all checks is within the bounds.
func FuzzRequest(f *testing.F) {
	for _, args := range []any{
		&helper.OpenArgs{UID: 64199, Groups: []uint32{64199, 4}, Path: []byte("/a\xff"), Mode: policy.ReadWrite},
		&helper.OpenArgs{Path: []byte("/etc/shadow"), Mode: policy.ReadOnly},
		&helper.DialArgs{CID: 40, Port: 8888, VM: "abc"},
		&helper.DialArgs{CID: 2, Port: 1},
		&helper.TapAddArgs{ID: "abc", Gateway: netip.MustParsePrefix("100.115.128.1/29"), Guest: netip.MustParseAddr("100.115.128.2"), Restricted: true},
		&helper.TapAddArgs{ID: "a b", Gateway: netip.MustParsePrefix("fe80::1/64"), Guest: netip.MustParseAddr("fe80::2%lo")},
		&helper.TapRemoveArgs{ID: "abc"},
	} {
		verb := "dial"
		switch args.(type) {
		case *helper.OpenArgs:
			verb = "open"
		case *helper.TapAddArgs:
			verb = "tap-add"
		case *helper.TapRemoveArgs:
			verb = "tap-remove"
		}
		b, err := helper.Encode(verb, args)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Add([]byte(`{"verb":"reserve-cid","args":{"cid":40,"vm":"abc"}}`))
	f.Add([]byte(`{"verb":"dial","args":{"cid":2,"CID":40,"port":8888}}`))
	s := &helper.Server{MinUID: 1000, ReservedUIDs: helper.ReservedUIDs, Networks: networks(f)}
	f.Fuzz(func(t *testing.T, b []byte) {
		verb, args, err := helper.ParseRequest(b)
		if err != nil {
			return
		}
		again, err := helper.Encode(verb, args)
		if err != nil || string(again) != string(b) {
			t.Fatalf("%q was read as %q, %v", b, again, err)
		}
		if s.Check(args) != nil {
			return
		}
		switch a := args.(type) {
		case *helper.OpenArgs:
			if a.UID < 1000 || helper.ReservedUIDs.Contains(a.UID) || a.UID == 1<<32-1 || a.Path[0] != '/' || strings.Contains(string(a.Path), "\x00") {
				t.Fatalf("%q would be done", b)
			}
		case *helper.ReserveArgs:
			if a.CID < 32 || a.CID == 1<<32-1 || strings.ContainsAny(a.VM, "\n \x1b") {
				t.Fatalf("%q would be done", b)
			}
		case *helper.TapAddArgs:
			if !pool.Contains(a.Gateway.Addr()) || a.Gateway.Bits() < 24 || !a.Gateway.Contains(a.Guest) || a.Guest == a.Gateway.Addr() || strings.Trim(a.ID, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
				t.Fatalf("%q would be done", b)
			}
		case *helper.TapRemoveArgs:
			if a.ID == "" || len(a.ID) > 11 || strings.Trim(a.ID, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
				t.Fatalf("%q would be done", b)
			}
		case *helper.DialArgs:
			if a.CID < 32 || a.CID == 1<<32-1 || a.Port == 0 || a.Port == 1<<32-1 || strings.ContainsAny(a.VM, "\n \x1b") {
				t.Fatalf("%q would be done", b)
			}
		}
	})
}
