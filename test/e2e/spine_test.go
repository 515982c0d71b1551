package e2e

import (
	"testing"

	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

func TestSpine(t *testing.T) {
	b := newBed(t)
	alice := b.client(testbed.Alice)
	var resp pb.StartVmResponse
	alice.must("StartVm", &pb.StartVmRequest{Name: "plain"}, &resp)
	t.Log(&resp)
	if !resp.Success {
		t.Fatal(resp.FailureReason)
	}
	var stopped pb.SuccessFailureResponse
	alice.must("StopVm", &pb.StopVmRequest{Name: "plain"}, &stopped)
	t.Log(&stopped)
	b.gone()
}
