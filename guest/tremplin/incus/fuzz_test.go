package incus

import (
	"net/url"
	"strings"
	"testing"
)

// FuzzAnswer: whatever Incus answers, which hands on what servers of images and
// images themselves say, it is read or refused; what becomes part of a path or
// an address is of the form that it must have.
func FuzzAnswer(f *testing.F) {
	f.Add(200, []byte(`{"type":"async","status_code":100,"operation":"/1.0/operations/x","metadata":{"id":"x","status_code":103,"may_cancel":true,
		"metadata":{"download_progress":"rootfs: 45% (3.21MB/s)"}}}`))
	f.Add(200, []byte(`{"type":"async","metadata":{"id":"x","status_code":200,"metadata":{"fingerprint":"`+strings.Repeat("a1", 32)+`","size":"7"}}}`))
	f.Add(200, []byte(`{"type":"sync","metadata":[{"fingerprint":"../../etc","architecture":"x86_64","properties":{"os":"Debian"},"size":-1}]}`))
	f.Add(404, []byte(`{"type":"error","error":"Image not found","error_code":404}`))
	f.Add(200, []byte(`{"type":"sync","metadata":{"network":{"eth0":{"addresses":[{"family":"inet","address":"100.115.92.194","scope":"global"}]}}}}`))
	f.Fuzz(func(t *testing.T, code int, data []byte) {
		a, err := decode("what was asked", code, data, nil)
		if err != nil {
			if err.Error() == "" {
				t.Error("an error without words")
			}
			return
		}
		if op, err := operation(a, "what was asked"); err == nil {
			if fingerprint, err := op.Fingerprint(); err == nil && (len(fingerprint) != 64 || strings.ContainsAny(fingerprint, "./")) {
				t.Errorf("the fingerprint %q", fingerprint)
			}
			if strings.Contains(escape(op.ID), "/") {
				t.Errorf("the operation %q leads elsewhere", op.ID)
			}
			op.Progress()
			if op.ended() && op.Code != statusSuccess && op.failure() == nil {
				t.Errorf("the operation %+v has not failed", op)
			}
		}
		var images []Image
		decode("images", code, data, &images)
		for _, i := range images {
			if u, err := url.Parse("http://incus/1.0/images/" + escape(i.Fingerprint)); err != nil || u.RawQuery != "" || u.Fragment != "" {
				t.Errorf("the image %q leads to %v, %v", i.Fingerprint, u, err)
			}
		}
		var instance Instance
		decode("an instance", code, data, &instance)
		var state State
		decode("a state", code, data, &state)
		if ip, ok := state.IPv4(); ok && !ip.Is4() {
			t.Errorf("the address %v", ip)
		}
	})
}
