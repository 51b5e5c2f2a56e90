package network

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// socket is one that stays open. Closing one makes the kernel finish what it
// still has to free (nft_rcv_nl_event, net/netfilter/nf_tables_api.c), which
// takes a grace period of RCU, ten to thirty milliseconds: too long for an answer
// of the resolver to wait for.
type socket struct {
	nft *nftables.Conn
	nl  *netlink.Conn
}

// change is a transaction on the table.
type change struct {
	c   *nftables.Conn
	err error
}

func (x *change) each(set *nftables.Set, list []nftables.SetElement, f func(*nftables.Set, []nftables.SetElement) error) {
	for part := range slices.Chunk(list, elementsPerMessage) {
		if x.err == nil {
			x.err = f(set, part)
		}
	}
}

func (x *change) add(set *nftables.Set, list []nftables.SetElement) {
	x.each(set, list, x.c.SetAddElements)
}

func (x *change) remove(set *nftables.Set, list []nftables.SetElement) {
	x.each(set, list, x.c.SetDeleteElements)
}

// renew adds elements, or gives those that are there the new time to live.
func (x *change) renew(set *nftables.Set, list []nftables.SetElement) {
	x.add(set, list)
	if !renewsElements() {
		// They are made anew; deleting needs one that is there.
		x.remove(set, list)
		x.add(set, list)
	}
}

// begin starts a transaction; n.firewall is held until its commit.
func (n *Network) begin(ctx context.Context) (*change, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if n.socket == nil {
		s := &socket{}
		var err error
		s.nft, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
			s.nl = c
			return c.SetWriteBuffer(transactionBytes)
		}))
		if err != nil {
			return nil, err
		}
		n.socket = s
	}
	if err := n.socket.nl.SetDeadline(deadline(ctx)); err != nil {
		return nil, errors.Join(err, n.closeSocket())
	}
	return &change{c: n.socket.nft}, nil
}

// commit applies a transaction. After an error the socket may hold answers that
// nobody has read, or changes that were not sent.
func (n *Network) commit(x *change) error {
	err := x.err
	if err == nil {
		err = x.c.Flush()
	}
	if err != nil {
		_ = n.closeSocket()
	}
	return err
}

func (n *Network) closeSocket() error {
	if n.socket == nil {
		return nil
	}
	s := n.socket
	n.socket = nil
	return s.nft.CloseLasting()
}

// renewsElements says whether adding an element that is there gives it the new
// time to live, as Linux does from 6.12.
var renewsElements = sync.OnceValue(func() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > 6 || major == 6 && minor >= 12
})
