/* SPDX-License-Identifier: Apache-2.0 */
#include <sched.h>
#include <string.h>

#include "cluster/fabric_inside.h"

lode_status_t fabric_ucx_status(ucs_status_t code, const char *call)
{
    if (code == UCS_OK)
        return LODE_OK;
    lode_status_t status = code == UCS_ERR_NO_MEMORY ? LODE_ERR_NO_MEMORY : LODE_ERR_UCX;
    return lode_fail(status, "%.*s: %s", (int)strcspn(call, "("), call, ucs_status_string(code));
}

lode_status_t fabric_listen(lode_fabric_h fabric, ucp_worker_h worker, unsigned id, ucp_am_recv_callback_t handler)
{
    ucp_am_handler_param_t param = {.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_FLAGS |
                                                  UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
                                    .id = id,
                                    .flags = UCP_AM_FLAG_WHOLE_MSG,
                                    .cb = handler,
                                    .arg = fabric};
    return FABRIC_UCX(ucp_worker_set_am_recv_handler(worker, &param));
}

/*
 * UCX completes what was under way on the endpoint with an error; here only the member is marked.
 */
static void on_error(void *argument, ucp_ep_h ep, ucs_status_t status)
{
    fabric_link_t *link = argument;
    (void)ep;
    link->failed = true;
    fabric_member_lost(link->fabric, link->rank, link->incarnation, status == UCS_ERR_CONNECTION_RESET,
                       ucs_status_string(status));
}

lode_status_t fabric_link_create(fabric_link_t *link, ucp_worker_h worker, const uint8_t *address)
{
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                                            UCP_EP_PARAM_FIELD_ERR_HANDLER,
                              .address = (const ucp_address_t *)address,
                              .err_mode = UCP_ERR_HANDLING_MODE_PEER,
                              .err_handler = {.cb = on_error, .arg = link}};
    return FABRIC_UCX(ucp_ep_create(worker, &params, &link->ep));
}

static void on_flushed(void *request, ucs_status_t status, void *user)
{
    uint32_t *left = user;
    (void)status; /* an error reaches on_error too */
    --*left;
    ucp_request_free(request);
}

static lode_status_t flush(ucp_ep_h ep, uint32_t *left)
{
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
                                 .cb.send = on_flushed,
                                 .user_data = left};
    ucs_status_ptr_t request = ucp_ep_flush_nbx(ep, &param);
    if (UCS_PTR_IS_PTR(request))
        ++*left;
    return UCS_PTR_IS_ERR(request) ? FABRIC_UCX(UCS_PTR_STATUS(request)) : LODE_OK;
}

lode_status_t fabric_links_wire(lode_fabric_h fabric, uint64_t timeout_ns)
{
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        if (r == fabric->rank)
            continue;
        LODE_TRY(flush(fabric->peers[r].asks.ep, &fabric->flushes));
        LODE_TRY(flush(fabric->peers[r].answers.ep, &fabric->flushes));
    }
    uint64_t end = lode_now_ns() + timeout_ns;
    while (fabric->flushes > 0 && atomic_load(&fabric->lost) == 0 && lode_now_ns() < end) {
        if (ucp_worker_progress(fabric->client) + ucp_worker_progress(fabric->service_worker) == 0)
            sched_yield();
    }
    if (atomic_load(&fabric->lost) > 0)
        return lode_fail(LODE_ERR_PEER_LOST, "a rank was lost while connecting; see the warnings of all ranks");
    if (fabric->flushes > 0)
        return lode_fail(LODE_ERR_TIMEOUT,
                         "no connection to all ranks after %.0f s; check that UCX_TLS and UCX_NET_DEVICES name a "
                         "network that joins all hosts",
                         (double)timeout_ns * 1e-9);
    return LODE_OK;
}

static void on_closed(void *request, ucs_status_t status, void *user)
{
    (void)status;
    (void)user;
    ucp_request_free(request);
}

void fabric_link_close(fabric_link_t *link)
{
    if (!link->ep)
        return;
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_FLAGS,
                                 .flags = UCP_EP_CLOSE_FLAG_FORCE,
                                 .cb.send = on_closed};
    ucs_status_ptr_t request = ucp_ep_close_nbx(link->ep, &param);
    if (UCS_PTR_IS_ERR(request))
        lode_debug("closing the endpoint to rank %u: %s", link->rank, ucs_status_string(UCS_PTR_STATUS(request)));
    link->ep = NULL;
    link->failed = false;
    link->closed = true;
}

/* UCX needs a few rounds to let go of closed endpoints; what is not gone by then goes with the worker. */
void fabric_links_destroy(lode_fabric_h fabric)
{
    bool open = false;
    for (uint32_t r = 0; fabric->peers && r < fabric->capacity; r++) {
        fabric_peer_t *peer = &fabric->peers[r];
        open |= peer->asks.ep || peer->answers.ep || peer->beats.ep;
        if (peer->rkey)
            ucp_rkey_destroy(peer->rkey);
        peer->rkey = NULL;
        fabric_link_close(&peer->asks);
        fabric_link_close(&peer->answers);
        fabric_link_close(&peer->beats);
    }
    if (!open)
        return;
    uint64_t quiet = lode_now_ns() + 10000000u, end = lode_now_ns() + 1000000000u;
    while (lode_now_ns() < quiet && lode_now_ns() < end) {
        if (ucp_worker_progress(fabric->client) + ucp_worker_progress(fabric->service_worker) > 0)
            quiet = lode_now_ns() + 10000000u;
    }
}
